//! An assignment as messages: whole in pieces, or the change since the last one.

use prost::Message;
use shoal_api::pb;
use shoal_api::pb::manager_message::Body;
use shoal_types::assignment::Assignment;

/// A message stays below this; the receivers' limit is 4 MiB.
const PIECE_BYTES: usize = 1 << 20;

fn message(body: Body) -> pb::ManagerMessage {
    pb::ManagerMessage { body: Some(body) }
}

/// The whole assignment; only the last piece is marked so.
pub fn snapshot(assignment: &Assignment) -> Vec<pb::ManagerMessage> {
    let generation = assignment.generation.0;
    let mut pieces = Vec::new();
    let mut piece = pb::Snapshot { generation, objects: Vec::new(), last: false };
    let mut bytes = 0;
    for object in assignment.objects.values() {
        let object = pb::AssignmentObject::from(object);
        let length = object.encoded_len() + 8;
        if bytes + length > PIECE_BYTES && !piece.objects.is_empty() {
            let full = std::mem::replace(&mut piece, pb::Snapshot { generation, ..pb::Snapshot::default() });
            pieces.push(message(Body::Snapshot(full)));
            bytes = 0;
        }
        bytes += length;
        piece.objects.push(object);
    }
    piece.last = true;
    pieces.push(message(Body::Snapshot(piece)));
    pieces
}

/// What leads from one assignment to the next: nothing, a delta, or a snapshot when the delta would be too large for
/// one message.
pub fn change(from: &Assignment, to: &Assignment) -> Vec<pb::ManagerMessage> {
    let delta = from.delta_to(to);
    if delta.upserts.is_empty() && delta.removes.is_empty() {
        return Vec::new();
    }
    let delta = pb::DeltaMessage::from(&delta);
    if delta.encoded_len() > PIECE_BYTES { snapshot(to) } else { vec![message(Body::Delta(delta))] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::Generation;
    use shoal_types::PublishedPort;
    use shoal_types::assignment::{AssignedService, Object};
    use shoal_types::net::{Protocol, ServiceIndex};
    use shoal_types::{ServiceId, assignment};

    fn service(n: u128, ports: u16) -> Object {
        let port = |published| PublishedPort::everywhere(Protocol::Tcp, published, 80);
        Object::Service(AssignedService {
            id: ServiceId::from_entropy(n),
            index: ServiceIndex(1),
            name: "web".parse().expect("literal"),
            vips: Vec::<assignment::Vip>::new(),
            ports: (1..=ports).map(port).collect(),
            lb: shoal_types::LbPolicy::Auto,
            dnsrr: Vec::new(),
        })
    }

    fn collect(messages: Vec<pb::ManagerMessage>) -> (Vec<bool>, usize) {
        let mut last = Vec::new();
        let mut objects = 0;
        for message in messages {
            assert!(message.encoded_len() < 4 << 20);
            if let Some(Body::Snapshot(piece)) = message.body {
                last.push(piece.last);
                objects += piece.objects.len();
            }
        }
        (last, objects)
    }

    #[test]
    fn a_large_snapshot_comes_in_pieces_and_an_empty_one_is_one_piece() {
        let large = Assignment::new(Generation(7), (0..40).map(|n| service(n, 8_000)));
        let (last, objects) = collect(snapshot(&large));
        assert!(last.len() > 2, "{} pieces", last.len());
        assert_eq!(last.iter().position(|l| *l), Some(last.len() - 1));
        assert_eq!(objects, 40);
        assert_eq!(collect(snapshot(&Assignment::default())), (vec![true], 0));
    }

    #[test]
    fn nothing_changed_is_nothing_and_too_much_is_a_snapshot() {
        let small = Assignment::new(Generation(7), [service(1, 1)]);
        let same = Assignment::new(Generation(8), [service(1, 1)]);
        assert!(change(&small, &same).is_empty());
        let other = Assignment::new(Generation(9), [service(2, 1)]);
        assert!(matches!(
            change(&small, &other).as_slice(),
            [pb::ManagerMessage { body: Some(Body::Delta(d)) }] if d.from == 7 && d.to == 9
        ));
        let large = Assignment::new(Generation(10), (0..40).map(|n| service(n, 8_000)));
        assert_eq!(collect(change(&small, &large)).1, 40);
    }
}
