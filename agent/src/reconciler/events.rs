//! Changes of links and addresses, as the kernel tells them.

use std::io;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A stream of "something changed".
#[derive(Debug)]
pub struct KernelEvents {
    receiver: Option<mpsc::Receiver<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl KernelEvents {
    /// Listens in the namespace of the calling thread.
    pub fn listen() -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
        let (tell, receiver) = mpsc::channel(1);
        let forward = tokio::spawn(async move {
            // The handle keeps the connection open.
            let _handle = handle;
            while messages.next().await.is_some() {
                // A full channel already says that something changed.
                if let Err(mpsc::error::TrySendError::Closed(())) = tell.try_send(()) {
                    return;
                }
            }
        });
        Ok(Self { receiver: Some(receiver), tasks: vec![tokio::spawn(connection), forward] })
    }

    /// No events ever.
    pub fn none() -> Self {
        Self { receiver: None, tasks: Vec::new() }
    }

    /// The next change. Cancel safe.
    pub(super) async fn next(&mut self) {
        if let Some(receiver) = &mut self.receiver
            && receiver.recv().await.is_some()
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    /// Forgets the changes so far.
    pub(super) fn drain(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            while receiver.try_recv().is_ok() {}
        }
    }
}

impl Drop for KernelEvents {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
