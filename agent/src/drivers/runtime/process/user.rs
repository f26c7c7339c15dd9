//! Finding a task's user in its own `/etc/passwd` and `/etc/group`. Read here and not by the C library, which
//! would load look-up modules out of the task's root directory while we still have our privileges.

use std::fs;
use std::path::{Path, PathBuf};

/// Who a task runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    pub(super) home: PathBuf,
}

/// Resolves `user`, `uid`, `user:group` or `uid:gid`. Numbers need no entry.
pub(super) fn resolve(user: Option<&str>) -> Result<Identity, String> {
    let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
    resolve_in(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve_in(user: Option<&str>, passwd: &str, group: &str) -> Result<Identity, String> {
    let text = user.unwrap_or("0");
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .filter_map(PasswdEntry::parse)
        .find(|entry| number.map_or(entry.name == user, |uid| entry.uid == uid));
    let uid = number.or(entry.as_ref().map(|entry| entry.uid));
    let uid = uid.ok_or_else(|| format!("no user is called '{user}' in the task's /etc/passwd"))?;
    let groups: Vec<GroupEntry<'_>> = group.lines().filter_map(GroupEntry::parse).collect();
    let gid = match wanted_group {
        None => entry.as_ref().map_or(uid, |entry| entry.gid),
        Some(wanted) => wanted
            .parse()
            .ok()
            .or_else(|| groups.iter().find(|group| group.name == wanted).map(|group| group.gid))
            .ok_or_else(|| format!("no group is called '{wanted}' in the task's /etc/group"))?,
    };
    // A group that was named is the only one, as container engines do.
    let supplementary = match (&entry, wanted_group) {
        (Some(entry), None) => groups
            .iter()
            .filter(|group| group.gid != gid && group.members.split(',').any(|name| name == entry.name))
            .map(|group| group.gid)
            .collect(),
        _ => Vec::new(),
    };
    let home = entry.as_ref().map_or("/", |entry| entry.home).into();
    Ok(Identity { uid, gid, groups: supplementary, home })
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid, home: fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/") })
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nlog:x:4:web,other\nother:x:5:webx\n";

    fn found(user: &str) -> Identity {
        resolve_in(Some(user), PASSWD, GROUP).expect("resolves")
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let web = Identity { uid: 33, gid: 33, groups: vec![4], home: "/srv".into() };
        assert_eq!(found("web"), web);
        assert_eq!(found("33"), web);
        assert_eq!(found("web:log"), Identity { gid: 4, groups: Vec::new(), ..web.clone() });
        assert_eq!(found("33:77"), Identity { gid: 77, groups: Vec::new(), ..web });
        assert_eq!(found("1234"), Identity { uid: 1234, gid: 1234, groups: Vec::new(), home: "/".into() });
    }

    #[test]
    fn root_is_the_default() {
        let root = resolve_in(None, "", "").expect("resolves");
        assert_eq!((root.uid, root.gid), (0, 0));
    }

    #[test]
    fn unknown_names_are_named() {
        assert!(resolve_in(Some("nix"), PASSWD, GROUP).expect_err("refused").contains("'nix'"));
        assert!(resolve_in(Some("web:nix"), PASSWD, GROUP).expect_err("refused").contains("'nix'"));
    }
}
