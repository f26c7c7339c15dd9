//! What the kernel lets this process have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files as far as this process may: each task, connection and question of a resolver takes some.
/// Returns the limit there was, which tasks begin with: a program may take what is above 1024 badly (select(2)).
pub fn raise_open_files() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_may_be_had_is_had_and_what_was_is_told() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).expect("lowered");
        assert_eq!(raise_open_files(), Ok(hard - 1));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
        assert_eq!(raise_open_files(), Ok(hard));
    }
}
