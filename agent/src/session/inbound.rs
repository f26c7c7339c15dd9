//! What a manager sends.

use std::net::SocketAddr;
use std::sync::Arc;

use shoal_api::pb;
use shoal_api::pb::manager_message::Body;
use shoal_types::Generation;
use shoal_types::assignment::{FenceError, Object};

use super::logs::LogRequests;
use super::{Outbound, Session, SessionError};
use crate::drivers::runtime::Runtime;
use crate::ledger::LedgerError;

/// The state of one stream.
pub(super) struct Inbound {
    /// Parts of a snapshot that has not ended.
    parts: Vec<Object>,
    logs: LogRequests,
}

impl Inbound {
    pub(super) fn new(runtime: Arc<dyn Runtime>, out: Outbound) -> Self {
        Self { parts: Vec::new(), logs: LogRequests::new(runtime, out) }
    }

    pub(super) fn take(
        &mut self,
        session: &mut Session,
        message: pb::ManagerMessage,
    ) -> Result<(), SessionError> {
        match message.body {
            Some(Body::Snapshot(snapshot)) => self.snapshot(session, snapshot)?,
            Some(Body::Delta(delta)) => {
                session.ledger.apply(delta.try_into()?)?;
                session.publish();
            }
            Some(Body::HeartbeatAck(ack)) => managers(session, &ack.manager_addrs),
            Some(Body::LogStart(start)) => self.logs.start(start),
            Some(Body::LogStop(stop)) => self.logs.stop(stop.request),
            // Of a later release.
            None => {}
        }
        Ok(())
    }

    fn snapshot(&mut self, session: &mut Session, snapshot: pb::Snapshot) -> Result<(), SessionError> {
        for object in snapshot.objects {
            self.parts.push(object.try_into()?);
        }
        if !snapshot.last {
            return Ok(());
        }
        let objects = std::mem::take(&mut self.parts);
        let outcome = session.ledger.replace(Generation(snapshot.generation), objects);
        if let Err(LedgerError::Fence(error @ FenceError::Conflict(_))) = &outcome {
            tracing::error!(%error, "the managers contradict themselves; keeping what is programmed");
        }
        outcome?;
        session.publish();
        session.stats.told.set(true);
        Ok(())
    }
}

fn managers(session: &Session, texts: &[String]) {
    let addresses: Vec<SocketAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    if !addresses.is_empty() {
        session.managers.send_if_modified(|known| {
            let news = *known != addresses;
            if news {
                *known = addresses;
            }
            news
        });
    }
}
