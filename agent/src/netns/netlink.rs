//! A route netlink connection that lives in a chosen namespace.

use super::{Netns, NetnsError};

/// A connection and the task that drives it. Dropping this closes the socket, which would otherwise keep the
/// namespace alive.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    driver: tokio::task::JoinHandle<()>,
}

impl Netlink {
    pub(super) fn connect(netns: &Netns) -> Result<Self, NetnsError> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _messages) = netns
            .run(|| {
                // Only registers the socket with the runtime's poller; starts nothing on this thread.
                let _entered = runtime.enter();
                rtnetlink::new_connection()
            })?
            .map_err(|error| NetnsError::io("open a netlink socket in", netns.path(), error))?;
        Ok(Self { handle, driver: runtime.spawn(connection) })
    }

    /// The request handle. A clone does not keep the connection open.
    pub fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// Closes the socket and returns once it is closed, so that the namespace can go.
    pub async fn close(mut self) {
        self.driver.abort();
        // The only outcome of a driver that was just aborted is that it was cancelled or already done.
        drop((&mut self.driver).await);
    }
}

impl std::ops::Deref for Netlink {
    type Target = rtnetlink::Handle;

    fn deref(&self) -> &Self::Target {
        &self.handle
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
