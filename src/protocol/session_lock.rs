//! The advisory lock by which sessions of one coordinator know each other on a participant.

/// The advisory lock that each session holds in shared mode on the participant from before its first PREPARE on: if no
/// session holds it, no PREPARE can still arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLock {
    /// Stands for the identity.
    pub key: i32,
    /// Stands for the server's start.
    pub incarnation: i32,
}
