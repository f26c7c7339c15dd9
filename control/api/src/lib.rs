//! shoal's wire: protobuf messages and stubs ([`pb`]), the conversion to always-valid types ([`wire`]), and how
//! an error travels ([`status`]).
#![forbid(unsafe_code)]

/// Generated messages, clients and servers of package `shoal.v1`.
#[expect(
    clippy::pedantic,
    clippy::clone_on_ref_ptr,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod pb {
    tonic::include_proto!("shoal.v1");
}

pub mod status;
pub mod wire;
