//! Control groups for programs that are to be counted as a task is.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::command::Run;
use crate::scrub;

/// A control group in each hierarchy in which `shoald` puts a task that has no limits. Gone, with what is in it, when it is
/// dropped.
pub struct Groups {
    name: String,
    paths: Vec<PathBuf>,
}

impl Groups {
    /// Makes them; `name` is one nobody else has.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let tops = if root.join("cgroup.procs").exists() {
            vec![root.to_owned()]
        } else {
            ["unified", "memory", "pids"].map(|hierarchy| root.join(hierarchy)).to_vec()
        };
        let mut this = Self { name: name.to_owned(), paths: Vec::new() };
        for top in tops.into_iter().filter(|top| top.is_dir()) {
            // Two levels, as those of a node and its task.
            let path = top.join(name).join("servers");
            std::fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
            this.paths.push(path);
        }
        Ok(this)
    }

    /// A program in them.
    pub fn run(&self, program: &Path) -> Run {
        Run::in_groups(&self.paths, program)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        scrub::remove_groups(&self.name);
    }
}
