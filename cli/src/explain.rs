//! Texts of the error codes.

use serde_json::{Value, json};
use shoal_types::ErrorCode;

use crate::failure::{Failure, code_name};

/// What a code means, what usually causes it, what to do.
struct Entry {
    title: &'static str,
    cause: &'static str,
    remedy: &'static str,
}

const fn entry(title: &'static str, cause: &'static str, remedy: &'static str) -> Entry {
    Entry { title, cause, remedy }
}

/// `E0214`, `e214` or `214` to its code.
pub(crate) fn find(text: &str) -> Result<ErrorCode, Failure> {
    let digits = text.trim_start_matches(['E', 'e']);
    digits.parse().ok().and_then(ErrorCode::from_number).ok_or_else(|| {
        let known: Vec<String> = ErrorCode::ALL.iter().map(|code| code_name(*code)).collect();
        Failure::Usage(format!("'{text}' is not an error code; there are {}", known.join(" ")))
    })
}

/// The text for people.
pub(crate) fn text(code: ErrorCode) -> String {
    let Entry { title, cause, remedy } = lookup(code);
    let (name, exit) = (code_name(code), code.exit_code());
    format!("{name}: {title}\n\n{cause}\n\nWhat to do: {remedy}\n\nExit code: {exit}\n")
}

/// The item for programs.
pub(crate) fn item(code: ErrorCode) -> Value {
    let Entry { title, cause, remedy } = lookup(code);
    json!({
        "code": code_name(code), "title": title, "cause": cause, "remedy": remedy, "exitCode": code.exit_code(),
    })
}

fn lookup(code: ErrorCode) -> Entry {
    match code {
        ErrorCode::Internal | ErrorCode::InvalidField | ErrorCode::Timeout | ErrorCode::Preflight => {
            general(code)
        }
        ErrorCode::NotFound | ErrorCode::Ambiguous | ErrorCode::NameTaken | ErrorCode::VersionConflict => {
            object(code)
        }
        ErrorCode::PortTaken
        | ErrorCode::SubnetOverlap
        | ErrorCode::SubnetExhausted
        | ErrorCode::PoolExhausted
        | ErrorCode::PortsExhausted
        | ErrorCode::PortsUnequal
        | ErrorCode::InUse
        | ErrorCode::NodeBusy => resource(code),
        ErrorCode::TasksFailing => entry(
            "the tasks of a service keep failing",
            "The service was made or changed as asked, but a slot's tasks end or are refused again and again, or one \
             ended and is not to be restarted. The managers go on trying as the restart policy says.",
            "the message has the last reason; 'shoal service logs NAME' shows what the program wrote. Correct it with \
             'shoal service update', or remove the service.",
        ),
        ErrorCode::PolicyUnsupported | ErrorCode::EngineInUse | ErrorCode::EngineMissing => balancing(code),
        ErrorCode::NoLeader
        | ErrorCode::PermissionDenied
        | ErrorCode::AlreadyMember
        | ErrorCode::NotMember
        | ErrorCode::NotManager => place(code),
        ErrorCode::TokenMalformed
        | ErrorCode::TokenUnknown
        | ErrorCode::TokenExpired
        | ErrorCode::TokenUsedUp
        | ErrorCode::CaMismatch => token(code),
    }
}

fn general(code: ErrorCode) -> Entry {
    match code {
        ErrorCode::InvalidField => entry(
            "a field does not parse or is out of range",
            "The message names the field as it is called in the API (task.process.command) and says what is wrong \
             with it. Nothing was changed.",
            "correct the flag that sets the field; 'shoal NOUN VERB --help' shows the form it takes.",
        ),
        ErrorCode::Timeout => entry(
            "it took longer than the time given",
            "The request was accepted, or may have been, and goes on in the background. Only the waiting ended.",
            "look at it with 'shoal service ps NAME' or 'shoal status'; wait longer with --timeout 15m, or not at all \
             with --detach. Repeating the command is safe.",
        ),
        ErrorCode::Preflight => entry(
            "the host lacks something that is needed",
            "Before a node forms or joins a swarm, its kernel, file systems, addresses and ports are checked. The \
             message names what is missing.",
            "supply what the message names and repeat the command.",
        ),
        _ => entry(
            "a failure nobody foresaw",
            "A bug, or something on a node that failed without a code of its own, as a disk that cannot be written. The \
             message says what was being done.",
            "read the log of the process it names ('journalctl -u shoald'). If it looks like a bug, report \
             it with that log and 'shoal version'.",
        ),
    }
}

fn object(code: ErrorCode) -> Entry {
    match code {
        ErrorCode::NotFound => entry(
            "there is no such object",
            "Objects are named by their name, their id, or the start of an id that only one object has. None of that \
             kind matches.",
            "list what there is: 'shoal service ls', 'shoal network ls', 'shoal node ls', 'shoal swarm token ls'.",
        ),
        ErrorCode::Ambiguous => entry(
            "more than one object has that id prefix",
            "The message lists the matches.",
            "give more characters of the id, or the name.",
        ),
        ErrorCode::NameTaken => entry(
            "the name is taken",
            "Names of services are unique among services, names of networks among networks, names of nodes among \
             nodes, because each is looked up in DNS.",
            "choose another name, change the object that has it with 'update', or remove it first.",
        ),
        _ => entry(
            "the object was changed since it was read",
            "An update is made from the object as it was when the command read it. Somebody else changed it in \
             between, and their change would have been lost.",
            "run the command again: it starts from the present state. --force-version overwrites their change.",
        ),
    }
}

fn resource(code: ErrorCode) -> Entry {
    match code {
        ErrorCode::PortTaken => entry(
            "another service publishes the port",
            "A number belongs to one service per protocol in the whole swarm, unless each publishes it on an address of \
             its own (ip=) or all of them in host mode. A port without ip= is on every address, so it overlaps with any. \
             In host mode no node has a port for two services: an update that would bring that about is refused, a \
             task that finds no node with the port free waits.",
            "publish another number, leave the choice to shoal (-p 80), bind both to addresses, or free it with \
             'shoal service update --publish-rm PORT OTHER'.",
        ),
        ErrorCode::SubnetOverlap => entry(
            "the subnet overlaps one that is in use",
            "It has addresses in common with another network, with ingress, or with the address of a node's tunnels. \
             Packets would not know where to go.",
            "give another --subnet, or none to have one cut from the pools; 'shoal network ls' shows those in use.",
        ),
        ErrorCode::SubnetExhausted => entry(
            "the subnet has no free address",
            "Each task takes an address in every network of its service, and each service one for its virtual IP.",
            "scale down or remove services of that network, or move services to a larger one; 'shoal network ls' \
             shows addresses in use.",
        ),
        ErrorCode::PoolExhausted => entry(
            "no free subnet in the pools",
            "Networks without --subnet are cut from the pools given at 'swarm init'. All of it is in use.",
            "remove networks nobody uses, or give a --subnet of your own.",
        ),
        ErrorCode::PortsUnequal => entry(
            "a port of SCTP can only be published as itself",
            "The checksum of SCTP covers its ports and is a CRC32c over the whole packet, which nothing on the way can \
             adjust; it covers no address. So the mesh changes addresses and leaves ports alone, and what clients use and \
             what the tasks listen on must be the same. No port can be chosen for one either.",
            "publish the port the tasks listen on, as in -p 5060:5060/sctp, or have them listen on the one to be published.",
        ),
        ErrorCode::PortsExhausted => entry(
            "no free port in the automatic range",
            "Ports published without a number come from 30000 to 32767, and all of them are taken.",
            "name a number with -p PUBLISHED:TARGET, or unpublish ports nobody uses.",
        ),
        ErrorCode::InUse => entry(
            "the object is used by another",
            "A network that services are attached to cannot be removed; ingress never can.",
            "detach the services the message names ('shoal service update --network-rm NETWORK SERVICE') or remove them.",
        ),
        _ => entry(
            "the node is alive or has a role that forbids it",
            "Removing a node that still answers would leave its tasks running unseen; the last manager holds the \
             swarm's state.",
            "run 'shoal swarm leave' on that node and remove it then, or add --force if it will never come back.",
        ),
    }
}

fn balancing(code: ErrorCode) -> Entry {
    match code {
        ErrorCode::PolicyUnsupported => entry(
            "the engine of load balancing lacks the policy",
            "Every node balances every service, and all must do it by the service's policy. Least connections need an \
             engine that counts them: ipvs does, ebpf (which auto means) does not. Drawing at random needs one that \
             draws: ebpf does, ipvs does not. (A port with proxy-protocol=v2 or \
             dsr=true is balanced by tables of ours on either engine; there it is refused as a field, E0100.)",
            "'shoal swarm update --lb-engine ipvs' (for random: ebpf), or another --lb: auto, rr, maglev or source. If \
             the swarm is set to that engine, 'shoal status' says which nodes are not: they are changing over, lack \
             IPVS, or have a lb_engine of their own.",
        ),
        ErrorCode::EngineInUse => entry(
            "services balance in a way that the engine lacks",
            "With the other engine these services could not go on as they were asked for.",
            "give the services the message names another policy ('shoal service update --lb auto NAME'), then set the \
             engine.",
        ),
        _ => entry(
            "nodes lack the engine",
            "IPVS is a part of the kernel that hosts may leave out or not have loaded. Nodes that have said nothing \
             about it yet, or are down, were not counted.",
            "load it there ('modprobe ip_vs'), or keep these nodes on eBPF: lb_engine = \"ebpf\" under [network] in \
             /etc/shoal/shoal.toml, or SHOAL_NETWORK_LB_ENGINE=ebpf. Then repeat the command.",
        ),
    }
}

fn place(code: ErrorCode) -> Entry {
    match code {
        ErrorCode::NoLeader => entry(
            "no manager answers",
            "The local daemon or the manager process could not be reached, or the managers have no leader. Running \
             services are not affected: what is in the kernel stays.",
            "check the daemon: 'systemctl status shoald', 'journalctl -u shoald'. Check that -H or SHOAL_HOST names \
             the right socket. Then repeat the command.",
        ),
        ErrorCode::PermissionDenied => entry(
            "the identity may not call this",
            "Everything is refused that a role does not need: a worker's certificate cannot call the manager's API, \
             and the local sockets are for root and group shoal, if there was one when they were made.",
            "run the command as root, or as a member of group shoal, on a manager.",
        ),
        ErrorCode::AlreadyMember => entry(
            "the node already is in a swarm",
            "A node belongs to one swarm at a time.",
            "'shoal status' shows which one; 'shoal swarm leave' takes the node out of it.",
        ),
        ErrorCode::NotMember => entry(
            "the node is in no swarm",
            "Services, networks and nodes belong to a swarm, and this node is not part of one.",
            "'shoal swarm init' makes a swarm, 'shoal swarm join --token TOKEN HOST' joins one.",
        ),
        _ => entry(
            "this node is a worker",
            "Only managers have the swarm's state and answer this command.",
            "run it on a manager; 'shoal status' on this node lists their addresses.",
        ),
    }
}

fn token(code: ErrorCode) -> Entry {
    match code {
        ErrorCode::TokenMalformed => entry(
            "the token is not of this format",
            "A token reads SHOAL-1-<digest of the CA>-<id>-<secret>. A part is missing or has a wrong character; \
             often the end was lost in copying.",
            "copy it again, or make a new one on a manager with 'shoal swarm token create'.",
        ),
        ErrorCode::TokenUnknown => entry(
            "no token with this id and secret",
            "It was revoked, it belongs to another swarm, or its secret is wrong.",
            "make a new one on a manager with 'shoal swarm token create'.",
        ),
        ErrorCode::TokenExpired => entry(
            "the token's life time is over",
            "Tokens live 24 hours unless made with another --ttl.",
            "make a new one on a manager with 'shoal swarm token create'.",
        ),
        ErrorCode::TokenUsedUp => entry(
            "the token has no uses left",
            "It was made with --uses, and as many nodes have joined with it.",
            "make a new one on a manager with 'shoal swarm token create', with more --uses or without a limit.",
        ),
        _ => entry(
            "the other side's CA is not the one that the token pins",
            "The token carries the digest of its swarm's CA key. The host that answered has another one, so the \
             secret was not sent. Either the address belongs to another swarm, or somebody is in between.",
            "check the address. If it is right, make a new token on that manager; if the digests still differ, do not \
             join.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_a_text_of_its_own() {
        let mut titles = BTreeSet::new();
        for code in ErrorCode::ALL {
            let text = text(find(&code_name(*code)).unwrap());
            let title = text.lines().next().unwrap().to_owned();
            assert!(title.starts_with(&format!("{}: ", code_name(*code))));
            assert!(text.contains("What to do: "));
            let words = title.split_once(": ").unwrap().1.to_owned();
            assert!(titles.insert(words), "{title} is used twice");
        }
        assert_eq!(titles.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn codes_can_be_written_in_three_ways() {
        for written in ["E0214", "e214", "214"] {
            let code = find(written).unwrap();
            assert!(text(code).starts_with("E0214: another service publishes the port\n"));
            assert_eq!(item(code)["exitCode"], 5);
        }
        for bad in ["", "E9999", "EE", "port"] {
            assert_eq!(find(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
