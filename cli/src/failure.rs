//! Why a command did not end well: the exit code and the text, printed once, in `main`.

use std::fmt::Write as _;
use std::io;

use shoal_api::status::ApiError;
use shoal_types::ErrorCode;

/// Exit code of a usage error.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Exit code of a dry run that would change something.
pub(crate) const EXIT_CHANGES_PENDING: u8 = 10;
/// Exit code after Ctrl-C.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// What a shell reports for a program whose reader went away (SIGPIPE).
pub(crate) const EXIT_BROKEN_PIPE: u8 = 141;

/// The end of a command that is not "done".
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something failed; has a stable code.
    Coded(Box<ApiError>),
    /// The command line is wrong in a way the parser cannot see.
    Usage(String),
    /// A dry run found changes; they are printed already.
    ChangesPending,
    /// Ctrl-C; the text says what goes on, empty when it goes without saying.
    Interrupted(String),
    /// Several targets failed, each was reported already; exit code of the first.
    Reported(u8),
    /// Standard output cannot be written to.
    Output(io::Error),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Coded(Box::new(error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Failure {
    /// A coded failure with its remedy.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>, help: impl Into<String>) -> Self {
        ApiError::new(code, message).with_help(help).into()
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Coded(error) => error.code.exit_code(),
            Self::Usage(_) => EXIT_USAGE,
            Self::ChangesPending => EXIT_CHANGES_PENDING,
            Self::Interrupted(_) => EXIT_INTERRUPTED,
            Self::Reported(code) => *code,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_BROKEN_PIPE,
            Self::Output(_) => 1,
        }
    }

    /// The code, when there is one.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Coded(error) => Some(error.code),
            _ => None,
        }
    }

    /// The text for standard error, ending in a newline; empty when there is nothing left to say.
    pub(crate) fn render(&self, color: bool) -> String {
        let (red, plain) = if color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        match self {
            Self::Coded(error) => render_coded(error, red, plain),
            Self::Usage(message) => format!("{red}error{plain}: {message}\n"),
            Self::Interrupted(message) if message.is_empty() => String::new(),
            Self::Interrupted(message) => format!("{red}interrupted{plain}: {message}\n"),
            Self::Output(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                format!("{red}error{plain}: cannot write the result: {error}\n")
            }
            Self::ChangesPending | Self::Reported(_) | Self::Output(_) => String::new(),
        }
    }
}

/// How a code is printed: `E0214`.
pub(crate) fn code_name(code: ErrorCode) -> String {
    format!("E{:04}", code.number())
}

fn render_coded(error: &ApiError, red: &str, plain: &str) -> String {
    let name = code_name(error.code);
    let mut text = format!("{red}error[{name}]{plain}: {}\n", one_line(&error.message));
    let mut line = |prefix: &str, content: &str| {
        // Writing into a String cannot fail.
        writeln!(text, "  {prefix}{}", one_line(content)).unwrap_or_default();
    };
    if !error.context.is_empty() {
        line("", &error.context.join("    "));
    }
    if !error.help.is_empty() {
        line("help: ", &error.help);
    }
    line("more: ", &format!("shoal explain {name}"));
    text
}

/// Text of another process on one line and without control characters, so that it cannot draw on the terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coded_failure_has_the_layout_of_the_surface() {
        let failure = Failure::from(
            ApiError::new(ErrorCode::PortTaken, "port 8080/tcp is already published by service 'api'")
                .with_context("asked by: service 'web' (ingress)")
                .with_context("held by: api, since 2026-03-01 10:12")
                .with_help("choose another port, or 'shoal service update --publish-rm 80 api'"),
        );
        assert_eq!(failure.exit_code(), 5);
        assert_eq!(
            failure.render(false),
            "error[E0214]: port 8080/tcp is already published by service 'api'\n  \
             asked by: service 'web' (ingress)    held by: api, since 2026-03-01 10:12\n  \
             help: choose another port, or 'shoal service update --publish-rm 80 api'\n  \
             more: shoal explain E0214\n"
        );
        assert!(failure.render(true).starts_with("\x1b[1;31merror[E0214]\x1b[0m: port"));
    }

    #[test]
    fn empty_parts_leave_no_line_and_control_characters_no_trace() {
        let failure = Failure::from(ApiError::new(ErrorCode::Internal, "a\nb\x1b[2J"));
        assert_eq!(failure.render(false), "error[E0001]: a b [2J\n  more: shoal explain E0001\n");
    }

    #[test]
    fn exit_codes() {
        for (failure, code) in [
            (Failure::Usage(String::new()), 2),
            (Failure::ChangesPending, 10),
            (Failure::Interrupted(String::new()), 130),
            (Failure::Reported(4), 4),
            (Failure::Output(io::ErrorKind::BrokenPipe.into()), 141),
            (Failure::Output(io::ErrorKind::StorageFull.into()), 1),
            (Failure::new(ErrorCode::NoLeader, "", ""), 6),
            (Failure::new(ErrorCode::Timeout, "", ""), 8),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure:?}");
        }
    }
}
