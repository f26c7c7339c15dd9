//! Stable error codes. An operator scripts against the number and the exit code; the text may improve.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, exit $exit:literal;)*) => {
        /// What went wrong, as a stable number.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// Every code there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number, printed as `E0214`.
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }

            /// The exit code of a command that failed with it.
            pub const fn exit_code(self) -> u8 {
                match self { $(Self::$name => $exit,)* }
            }

            /// The code with that number.
            pub fn from_number(number: u16) -> Option<Self> {
                Self::ALL.iter().copied().find(|c| c.number() == number)
            }
        }
    };
}

codes! {
    /// A bug or an unforeseen failure on the other side; the log of the named process has the chain.
    Internal = 1, exit 1;
    /// A field that does not parse or is out of range.
    InvalidField = 100, exit 2;
    /// No object of that kind has that name, id or prefix.
    NotFound = 200, exit 4;
    /// More than one object has that id prefix.
    Ambiguous = 201, exit 4;
    /// The name is taken.
    NameTaken = 210, exit 5;
    /// The object was changed since it was read.
    VersionConflict = 211, exit 5;
    /// Another service publishes the port.
    PortTaken = 214, exit 5;
    /// The subnet overlaps one that is in use.
    SubnetOverlap = 215, exit 5;
    /// The subnet has no free address.
    SubnetExhausted = 216, exit 5;
    /// No free subnet in the pools.
    PoolExhausted = 217, exit 5;
    /// The object is used by another.
    InUse = 218, exit 5;
    /// No free port in the automatic range.
    PortsExhausted = 219, exit 5;
    /// The node is alive or has a role that forbids it.
    NodeBusy = 220, exit 5;
    /// An engine of load balancing lacks the policy.
    PolicyUnsupported = 221, exit 5;
    /// Services balance in a way that the engine lacks.
    EngineInUse = 222, exit 5;
    /// Nodes lack the engine.
    EngineMissing = 223, exit 5;
    /// The port would have to be translated, and its protocol does not allow that.
    PortsUnequal = 224, exit 2;
    /// The manager has no leader to ask, or can't be reached.
    NoLeader = 300, exit 6;
    /// The tasks of a service keep failing.
    TasksFailing = 310, exit 1;
    /// The identity may not call this.
    PermissionDenied = 400, exit 7;
    /// The token is not of this format.
    TokenMalformed = 401, exit 7;
    /// No token with this id and secret.
    TokenUnknown = 402, exit 7;
    /// The token's life time is over.
    TokenExpired = 403, exit 7;
    /// The token has no uses left.
    TokenUsedUp = 404, exit 7;
    /// The other side's CA is not the one that the token pins.
    CaMismatch = 405, exit 7;
    /// The node already is in a swarm.
    AlreadyMember = 410, exit 5;
    /// The node is in no swarm.
    NotMember = 411, exit 1;
    /// This node is a worker; managers answer this call.
    NotManager = 412, exit 1;
    /// It took longer than the given time; it goes on in the background.
    Timeout = 500, exit 8;
    /// The host lacks something that is needed.
    Preflight = 600, exit 9;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_are_unique_and_round_trip() {
        let numbers: BTreeSet<u16> = ErrorCode::ALL.iter().map(|c| c.number()).collect();
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), Some(*code));
        }
    }
}
