//! Words of shoal as always-valid types: ids, addresses, specs, cluster objects, node assignments, error codes.
//!
//! Every constructor checks; a value that exists is valid. Nothing here does I/O, reads a clock or draws
//! randomness: entropy and time come in as arguments. Wire formats are the business of `shoal-api`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod assignment;
pub mod error;
pub mod id;
pub mod lb;
pub mod net;
pub mod object;
pub mod pki;
pub mod port;
pub mod shared;
pub mod spec;
pub mod token;

pub use error::ErrorCode;
pub use id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId, TokenId};
pub use lb::{DirectRouting, LbEngine, LbInUse, LbPolicy, NodeLb, Weight};
pub use net::{DualAddr, DualNet, EndpointId, MacAddr, Protocol, ServiceIndex, Vni};
pub use object::{Generation, Timestamp};
pub use port::{Binding, PortForm, PortPlace, ProxyProtocol, PublishMode, PublishedPort};
