//! Every case, over ordinary memory: what the programs decide and what becomes of the packet.

#[path = "support/all.rs"]
mod support;

use support::cases::every_case;
use support::host::Host;

every_case!(Host::default());
