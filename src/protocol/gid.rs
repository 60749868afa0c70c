//! The identifier given to `PREPARE TRANSACTION` on a participant, `px_<n>_<serverid>_<userid>`,
//! and the commands that carry it.
//!
//! `<n>` is 38 decimal digits: 20 of the coordinator's identity, zero-padded, and 18 random digits
//! of the transaction. It is random and not derived from a counter or an xid, because those are
//! handed out again after a crash, a restore or a failover. All participants of a transaction share
//! `<n>`.
//!
//! It has 63 characters at most; PostgreSQL takes fewer than 200 (`GIDSIZE` in `twophase.h`).
//!
//! Invariant: [`Gid::parse`] accepts exactly what [`Gid`]'s `Display` writes, so that nothing that
//! another program prepared is ever taken for ours.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::fmt;

use crate::protocol::participant::Outcome;

/// The nonce of a transaction is below this: 18 digits.
pub const NONCE_LIMIT: u64 = 1_000_000_000_000_000_000;

const IDENTITY_DIGITS: usize = 20;
const NONCE_DIGITS: usize = 18;

/// The random identity of a coordinator's database. Never dumped, never shared by a copy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity(u64);

impl Identity {
    /// From the stored number; `None` unless it is positive and fits PostgreSQL's bigint.
    pub fn new(number: u64) -> Option<Self> {
        (number > 0 && number <= i64::MAX as u64).then_some(Self(number))
    }

    /// From eight random bytes.
    pub fn draw(random: [u8; 8]) -> Self {
        Self((u64::from_ne_bytes(random) >> 1).max(1))
    }

    /// The number to store.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The first key of the advisory lock that each session of this identity holds on a
    /// participant.
    pub fn session_key(self) -> i32 {
        // A multiplicative hash. If two identities had the same key, each would only wait for the
        // other's sessions.
        (self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32 as i32
    }

    /// What every gid of this identity begins with, and no other gid does.
    pub fn gid_prefix(self) -> String {
        format!("px_{:020}", self.0)
    }
}

/// The random digits that name one distributed transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Nonce(u64);

impl Nonce {
    /// From the stored number; `None` from 10^18 on.
    pub fn new(number: u64) -> Option<Self> {
        (number < NONCE_LIMIT).then_some(Self(number))
    }

    /// From sixteen random bytes; the modulo's bias is below 2^-68.
    pub fn draw(random: [u8; 16]) -> Self {
        Self((u128::from_ne_bytes(random) % u128::from(NONCE_LIMIT)) as u64)
    }

    /// The number to store.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// One participant's prepared transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Gid {
    /// Whose transaction.
    pub identity: Identity,
    /// Which transaction.
    pub nonce: Nonce,
    /// OID of the foreign server on the coordinator.
    pub serverid: u32,
    /// OID of the local user whose mapping was used.
    pub userid: u32,
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "px_{:020}{:018}_{}_{}",
            self.identity.0, self.nonce.0, self.serverid, self.userid
        )
    }
}

impl Gid {
    /// Reads what [`Display`](fmt::Display) wrote, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        let mut parts = text.strip_prefix("px_")?.split('_');
        let (n, server, user) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some()
            || n.len() != IDENTITY_DIGITS + NONCE_DIGITS
            || !(digits(n) && digits(server) && digits(user))
        {
            return None;
        }
        let (identity, nonce) = n.split_at(IDENTITY_DIGITS);
        let gid = Self {
            identity: Identity::new(identity.parse().ok()?)?,
            nonce: Nonce::new(nonce.parse().ok()?)?,
            serverid: server.parse().ok()?,
            userid: user.parse().ok()?,
        };
        // Leading zeros in an OID would make two texts one gid.
        (gid.to_string() == text).then_some(gid)
    }
}

/// A command and the command tag with which the server says that it was done.
pub struct Command {
    /// What is sent.
    pub sql: Cow<'static, CStr>,
    /// What comes back.
    pub tag: &'static CStr,
}

impl Command {
    /// Commits in one phase.
    pub const COMMIT: Self = Self { sql: Cow::Borrowed(c"COMMIT"), tag: c"COMMIT" };
    /// Rolls back what is not prepared.
    pub const ROLLBACK: Self = Self { sql: Cow::Borrowed(c"ROLLBACK"), tag: c"ROLLBACK" };

    /// `verb`, which is also the tag, with a gid: digits and underscores, which need no quoting.
    fn with_gid(verb: &'static CStr, gid: &Gid) -> Self {
        let verb_text = verb.to_str().expect("ASCII");
        let sql = CString::new(format!("{verb_text} '{gid}'")).expect("no NUL in digits");
        Self { sql: Cow::Owned(sql), tag: verb }
    }
}

/// A gid with the commands that carry it, made before PREPARE is sent.
pub struct Prepared {
    /// The gid.
    pub gid: Gid,
    /// `PREPARE TRANSACTION 'gid'`.
    pub prepare: Command,
    commit: Command,
    rollback: Command,
}

impl Prepared {
    /// The commands for a gid.
    pub fn new(gid: Gid) -> Self {
        Self {
            gid,
            prepare: Command::with_gid(c"PREPARE TRANSACTION", &gid),
            commit: Command::with_gid(c"COMMIT PREPARED", &gid),
            rollback: Command::with_gid(c"ROLLBACK PREPARED", &gid),
        }
    }

    /// `COMMIT PREPARED 'gid'` or `ROLLBACK PREPARED 'gid'`.
    pub fn settling(&self, outcome: Outcome) -> &Command {
        match outcome {
            Outcome::Commit => &self.commit,
            Outcome::Abort => &self.rollback,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LEN: usize = 63;
    use proptest::prelude::*;

    fn gid(identity: u64, nonce: u64, serverid: u32, userid: u32) -> Gid {
        Gid {
            identity: Identity::new(identity).unwrap(),
            nonce: Nonce::new(nonce).unwrap(),
            serverid,
            userid,
        }
    }

    #[test]
    fn has_the_documented_form_and_length() {
        let text = gid(7, 42, 16385, 10).to_string();
        assert_eq!(text, "px_00000000000000000007000000000000000042_16385_10");
        let longest = gid(i64::MAX as u64, NONCE_LIMIT - 1, u32::MAX, u32::MAX).to_string();
        assert_eq!(longest.len(), MAX_LEN);
    }

    #[test]
    fn foreign_texts_are_not_ours() {
        for text in [
            "",
            "px_",
            "px_1_2_3",
            "px_00000000000000000007000000000000000042_16385",
            "px_00000000000000000007000000000000000042_016385_10",
            "px_00000000000000000007000000000000000042_16385_10_1",
            "px_00000000000000000007000000000000000042_+1_10",
            "px_99999999999999999999000000000000000042_1_10",
            "px_00000000000000000000000000000000000042_1_10",
            "PX_00000000000000000007000000000000000042_1_10",
            "px_00000000000000000007000000000000000042_4294967296_10",
        ] {
            assert_eq!(Gid::parse(text), None, "{text}");
        }
    }

    #[test]
    fn each_command_carries_the_gid_and_is_confirmed_by_its_own_tag() {
        let prepared = Prepared::new(gid(7, 42, 16385, 10));
        for (command, tag) in [
            (&prepared.prepare, c"PREPARE TRANSACTION"),
            (prepared.settling(Outcome::Commit), c"COMMIT PREPARED"),
            (prepared.settling(Outcome::Abort), c"ROLLBACK PREPARED"),
        ] {
            let sql = format!("{} '{}'", tag.to_str().unwrap(), prepared.gid);
            assert_eq!((command.sql.to_str().unwrap(), command.tag), (sql.as_str(), tag));
        }
        for command in [Command::COMMIT, Command::ROLLBACK] {
            assert_eq!(&*command.sql, command.tag);
        }
    }

    proptest! {
        #[test]
        fn parse_undoes_display(i in 1u64..=i64::MAX as u64, n in 0..NONCE_LIMIT, s: u32, u: u32) {
            let gid = gid(i, n, s, u);
            let text = gid.to_string();
            prop_assert!(text.len() <= MAX_LEN);
            prop_assert!(text.starts_with(&gid.identity.gid_prefix()));
            prop_assert_eq!(Gid::parse(&text), Some(gid));
        }

        #[test]
        fn parse_accepts_only_its_own_output(text in "px_[0-9_]{30,70}") {
            if let Some(gid) = Gid::parse(&text) {
                prop_assert_eq!(gid.to_string(), text);
            }
        }
    }
}
