//! Restore points of one name on several servers: on which of them one has to be made, and where
//! it cannot be.
//!
//! A restore point is a record in a cluster's WAL, so a cluster gets one, however many foreign
//! servers lead to its databases.

/// What a server has told of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its system identifier, which copies and standbys of the cluster share.
    pub system_identifier: String,
    /// When it was started, in which they differ.
    pub started: String,
    pub in_recovery: bool,
    /// Its WAL can be archived: `wal_level` is above `minimal`.
    pub has_archivable_wal: bool,
    /// The role may make restore points.
    pub may_create: bool,
}

/// Whose restore point is a server's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// One is made there.
    Own,
    /// That of the server at this place on the list: they are one cluster, or this one is a standby
    /// of it.
    Of(usize),
}

/// Why no restore point can be made on a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is in recovery, and not known as the standby of one other server on the list.
    InRecovery,
    /// `wal_level` is `minimal`.
    MinimalWal,
    /// The role must not.
    NotAllowed,
}

/// Whose restore point each server's is, in their order.
///
/// # Errors
/// The place on the list of the first on which it cannot be made, and why.
pub fn points(servers: &[Seen]) -> Result<Vec<Point>, (usize, Refusal)> {
    let is_one = |a: &Seen, b: &Seen| {
        (&a.system_identifier, &a.started) == (&b.system_identifier, &b.started)
    };
    let point = |(place, seen): (usize, &Seen)| {
        if seen.in_recovery {
            let is_primary =
                |s: &Seen| !s.in_recovery && s.system_identifier == seen.system_identifier;
            let primary = servers.iter().position(is_primary);
            let are_one = |at: usize| {
                servers.iter().filter(|s| is_primary(s)).all(|s| is_one(s, &servers[at]))
            };
            return primary
                .filter(|at| are_one(*at))
                .map(Point::Of)
                .ok_or((place, Refusal::InRecovery));
        }
        match servers[..place].iter().position(|before| is_one(before, seen)) {
            Some(before) => Ok(Point::Of(before)),
            None if !seen.has_archivable_wal => Err((place, Refusal::MinimalWal)),
            None if !seen.may_create => Err((place, Refusal::NotAllowed)),
            None => Ok(Point::Own),
        }
    };
    servers.iter().enumerate().map(point).collect()
}

/// Whether a restore point can have this name: PostgreSQL keeps 63 bytes of it. It has to be the
/// same in all encodings, and to stand between quotes in SQL and in a configuration file.
pub fn is_valid_name(name: &[u8]) -> bool {
    let may_stand = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'\'' | b'\\');
    (1..=63).contains(&name.len()) && name.iter().all(may_stand)
}

/// A position in the WAL, as PostgreSQL writes it.
pub fn position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let part = |text: &str| u32::from_str_radix(text, 16).ok().map(u64::from);
    Some(part(high)? << 32 | part(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(cluster: u8, started: u8) -> Seen {
        Seen {
            system_identifier: cluster.to_string(),
            started: started.to_string(),
            in_recovery: false,
            has_archivable_wal: true,
            may_create: true,
        }
    }

    #[test]
    fn a_cluster_gets_one_point() {
        // The coordinator, a shard, another database of it, a copy of it, the coordinator itself.
        let servers = [seen(1, 1), seen(2, 1), seen(2, 1), seen(2, 3), seen(1, 1)];
        let points = points(&servers).unwrap();
        assert_eq!(points, [Point::Own, Point::Own, Point::Of(1), Point::Own, Point::Of(0)]);
    }

    #[test]
    fn a_standby_has_the_point_of_its_primary() {
        let standby = |of| Seen { in_recovery: true, ..seen(of, 9) };
        assert_eq!(
            points(&[seen(1, 1), standby(2), seen(2, 1), seen(2, 1)]),
            Ok(vec![Point::Own, Point::Of(2), Point::Own, Point::Of(2)])
        );
        assert_eq!(points(&[seen(1, 1), standby(2)]), Err((1, Refusal::InRecovery)));
        // Of two copies it may be the standby of either.
        let copies = [seen(1, 1), standby(2), seen(2, 1), seen(2, 2)];
        assert_eq!(points(&copies), Err((1, Refusal::InRecovery)));
    }

    #[test]
    fn what_is_missing_is_told() {
        let minimal = Seen { has_archivable_wal: false, ..seen(2, 1) };
        assert_eq!(points(&[seen(1, 1), minimal]), Err((1, Refusal::MinimalWal)));
        let forbidden = Seen { may_create: false, ..seen(2, 1) };
        assert_eq!(points(&[seen(1, 1), forbidden.clone()]), Err((1, Refusal::NotAllowed)));
        // Where the point is made by way of another mapping it does not matter.
        assert!(points(&[seen(1, 1), seen(2, 1), forbidden]).is_ok());
    }

    #[test]
    fn names_are_the_same_everywhere() {
        assert!(is_valid_name(b"before release 7") && is_valid_name(&[b'x'; 63]));
        assert!(!is_valid_name(b"") && !is_valid_name(&[b'x'; 64]));
        assert!(!is_valid_name("für".as_bytes()) && !is_valid_name(b"two\nlines"));
        assert!(!is_valid_name(b"it's") && !is_valid_name(b"back\\slash"));
    }

    #[test]
    fn a_position_is_read() {
        assert_eq!(position("0/3000060"), Some(0x300_0060));
        assert_eq!(position("1A/FFFFFFFF"), Some(0x1a_ffff_ffff));
        assert_eq!(position("x"), None);
        assert_eq!(position("1/"), None);
    }
}
