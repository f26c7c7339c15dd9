//! How an error travels: a gRPC status whose details carry the stable code, the context and the remedy.

use prost::Message;
use shoal_types::ErrorCode;
use tonic::{Code, Status};

use crate::pb;
use crate::wire::WireError;

/// An error for an operator: what failed and why, where, what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Stable code.
    pub code: ErrorCode,
    /// What failed, and why.
    pub message: String,
    /// Where: `asked by: ...`, `held by: ...`.
    pub context: Vec<String>,
    /// What to do next; empty when there is nothing better than trying again.
    pub help: String,
}

impl ApiError {
    /// An error without context or help.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), context: Vec::new(), help: String::new() }
    }

    /// Adds the remedy.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// Adds a line of context.
    #[must_use]
    pub fn with_context(mut self, line: impl Into<String>) -> Self {
        self.context.push(line.into());
        self
    }

    /// Reads what [`Status::from`] wrote. `None` when the status does not come from shoal (transport errors).
    pub fn from_status(status: &Status) -> Option<Self> {
        if status.details().is_empty() {
            return None;
        }
        let detail = pb::ErrorDetail::decode(status.details()).ok()?;
        let code = u16::try_from(detail.code).ok().and_then(ErrorCode::from_number);
        Some(Self {
            code: code.unwrap_or(ErrorCode::Internal),
            message: detail.message,
            context: detail.context,
            help: detail.help,
        })
    }
}

/// The gRPC code that says the same as an error code, for callers that know nothing of ours.
fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::Internal => Code::Internal,
        ErrorCode::InvalidField | ErrorCode::PortsUnequal => Code::InvalidArgument,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::NameTaken | ErrorCode::PortTaken | ErrorCode::AlreadyMember => Code::AlreadyExists,
        ErrorCode::VersionConflict => Code::Aborted,
        ErrorCode::SubnetExhausted | ErrorCode::PoolExhausted | ErrorCode::PortsExhausted => {
            Code::ResourceExhausted
        }
        ErrorCode::Ambiguous
        | ErrorCode::SubnetOverlap
        | ErrorCode::InUse
        | ErrorCode::NodeBusy
        | ErrorCode::PolicyUnsupported
        | ErrorCode::EngineInUse
        | ErrorCode::EngineMissing
        | ErrorCode::TasksFailing
        | ErrorCode::NotMember
        | ErrorCode::NotManager
        | ErrorCode::Preflight => Code::FailedPrecondition,
        ErrorCode::NoLeader => Code::Unavailable,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::TokenMalformed
        | ErrorCode::TokenUnknown
        | ErrorCode::TokenExpired
        | ErrorCode::TokenUsedUp
        | ErrorCode::CaMismatch => Code::Unauthenticated,
        ErrorCode::Timeout => Code::DeadlineExceeded,
    }
}

/// Bytes of a message that travel at most. A status is a header of HTTP/2, twice over and encoded, and one above 16 KiB is
/// refused by whoever gets it, with all that it says. The log has messages whole.
const LONGEST: usize = 3_072;

/// A message without its middle, if it is too long: what failed is at its beginning, and at the end of what the kernel has to
/// say of a program is why it refuses it.
fn shortened(message: String) -> String {
    const OMITTED: &str = " [...] ";
    if message.len() <= LONGEST {
        return message;
    }
    let half = (LONGEST - OMITTED.len()) / 2;
    let (head, tail) = (message.floor_char_boundary(half), message.ceil_char_boundary(message.len() - half));
    format!("{}{OMITTED}{}", &message[..head], &message[tail..])
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let message = shortened(error.message);
        let detail = pb::ErrorDetail {
            code: error.code.number().into(),
            message: message.clone(),
            context: error.context,
            help: error.help,
        };
        Self::with_details(grpc_code(error.code), message, detail.encode_to_vec().into())
    }
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        Self::new(ErrorCode::InvalidField, error.to_string())
    }
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        ApiError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_parts_through_a_status() {
        for code in ErrorCode::ALL {
            let error =
                ApiError::new(*code, "it failed").with_context("held by: api").with_help("choose another");
            let status = Status::from(error.clone());
            assert_eq!(ApiError::from_status(&status), Some(error));
        }
        assert_eq!(ApiError::from_status(&Status::internal("transport")), None);
    }

    #[test]
    fn a_message_that_no_header_holds_keeps_its_ends() {
        for middle in ["x".repeat(1 << 20), "\u{20ac}".repeat(1 << 18), "\n\u{1F41F}".repeat(1 << 17)] {
            let status =
                Status::from(ApiError::new(ErrorCode::Internal, format!("it failed: {middle}: why")));
            let told = ApiError::from_status(&status).expect("an error of ours").message;
            assert!(told.starts_with("it failed: ") && told.ends_with(": why"), "{told}");
            assert!(told.contains("[...]") && told.len() <= LONGEST);
            // As it is written to the wire: every byte of a character beyond ASCII takes three.
            assert!(status.message().len() * 3 + status.details().len() * 4 / 3 < 16 << 10);
        }
        let short = "y".repeat(LONGEST);
        assert_eq!(shortened(short.clone()), short);
    }
}
