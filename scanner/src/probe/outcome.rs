//! What one attempt came to, out of what the kernel says about it.

use std::io;

use rustix::io::Errno;

/// What one attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The handshake was answered, or a datagram came back.
    Answered {
        /// Whether the target is an address of this very host: there, one of our own sockets can
        /// have answered.
        own_host: bool,
    },
    /// RST, or ICMP port unreachable.
    Refused,
    /// ICMP host, network or administratively unreachable.
    Unreachable,
    /// Nothing within the time limit.
    Silent,
    /// Something that this host ran short of, or a collision with ourselves: worth asking again.
    Short(String),
    /// This host cannot ask; the reason, as the system gave it.
    NotAsked(String),
}

/// Reads an error of a call that sends: the network has not spoken yet.
pub fn failed_here(error: &io::Error) -> Outcome {
    match is_shortage(error) {
        true => Outcome::Short(reason(error)),
        false => Outcome::NotAsked(reason(error)),
    }
}

/// Whether this host only lacks something for a while.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::AGAIN
                | Errno::ADDRNOTAVAIL
                | Errno::ADDRINUSE
        )
    )
}

/// Reads an error that came in answer to a probe.
pub fn refused_by_network(error: &io::Error) -> Outcome {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => Outcome::Refused,
        // Linux says ECONNREFUSED for a RST to our SYN, and this for one after the handshake.
        Some(Errno::CONNRESET) => Outcome::Answered { own_host: false },
        Some(Errno::TIMEDOUT) => Outcome::Silent,
        Some(
            Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::NOPROTOOPT
            | Errno::PROTO
            | Errno::ACCESS,
        ) => Outcome::Unreachable,
        _ => failed_here(error),
    }
}

/// What the system said, without the number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((plain, _)) => plain.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> io::Error {
        io::Error::from(errno)
    }

    #[test]
    fn the_same_number_means_another_thing_before_and_after_sending() {
        let unreachable = error(Errno::NETUNREACH);
        assert_eq!(failed_here(&unreachable), Outcome::NotAsked("network is unreachable".into()));
        assert_eq!(refused_by_network(&unreachable), Outcome::Unreachable);
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(refused_by_network(&error(Errno::CONNREFUSED)), Outcome::Refused);
        assert_eq!(refused_by_network(&error(Errno::CONNRESET)), Outcome::Answered { own_host: false });
        assert_eq!(refused_by_network(&error(Errno::HOSTUNREACH)), Outcome::Unreachable);
        assert_eq!(refused_by_network(&error(Errno::TIMEDOUT)), Outcome::Silent);
    }

    #[test]
    fn a_shortage_is_not_a_refusal() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS] {
            assert!(matches!(failed_here(&error(errno)), Outcome::Short(_)), "{errno}");
        }
        assert_eq!(failed_here(&error(Errno::ACCESS)), Outcome::NotAsked("permission denied".into()));
    }
}
