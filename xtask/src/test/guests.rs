//! The vm tier: the scenarios on other kernels, in guests that run side by side.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;

use super::column::{Column, Form};
use super::hole;
use super::matrix::{Cell, Filled, Matrix, driver_row};

/// What chooses the engine of every `shoald` that a fixture starts.
pub(super) const ENGINE_SETTING: &str = "SHOAL_NETWORK_LB_ENGINE";
/// How much of what a guest said last is told when it ended badly.
const TAIL: usize = 40;

/// Test programs, built for guests.
#[derive(Debug)]
pub(super) struct GuestPrograms {
    pub(super) scenarios: PathBuf,
    pub(super) bpf: PathBuf,
    pub(super) ipvs: PathBuf,
}

/// A run of the tier.
pub(super) struct Tier<'a> {
    pub(super) programs: &'a GuestPrograms,
    pub(super) form: Form,
    pub(super) filter: Option<&'a str>,
    /// Where the matrix goes.
    pub(super) target: &'a Path,
}

impl Tier<'_> {
    /// Runs every column that is not there yet.
    pub(super) fn run(&self, host: Option<Filled>) -> anyhow::Result<Matrix> {
        let mut rows = self.list_rows()?;
        let mut queue: VecDeque<_> = Column::of_guests(self.form).into();
        if host.is_none() {
            queue.push_back(Column::HOST);
        }
        let mut columns = self.side_by_side(queue, &rows)?;
        columns.extend(host);
        columns.sort_by_key(|filled| filled.column);
        if self.filter.is_none() {
            rows.extend(["bpf", "ipvs"].map(driver_row));
        }
        let matrix = Matrix { form: self.form, rows, columns };
        fs::write(self.target.join("matrix.md"), matrix.markdown())?;
        fs::write(self.target.join("matrix.json"), format!("{:#}\n", matrix.json()))?;
        Ok(matrix)
    }

    /// All rows of scenarios that the filter leaves.
    fn list_rows(&self) -> anyhow::Result<Vec<String>> {
        let output = Command::new(&self.programs.scenarios).args(self.filter).arg("--list").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }

    /// Columns on a CPU each, as many at once as there are CPUs.
    fn side_by_side(&self, queue: VecDeque<Column>, rows: &[String]) -> anyhow::Result<Vec<Filled>> {
        let lanes = std::thread::available_parallelism()?.get().min(queue.len());
        let queue = Mutex::new(queue);
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..lanes)
                .map(|cpu| {
                    scope.spawn(move || -> anyhow::Result<Vec<_>> {
                        std::iter::from_fn(next).map(|column| self.fill(column, cpu, rows)).collect()
                    })
                })
                .collect();
            let mut all = Vec::new();
            for lane in lanes {
                all.extend(lane.join().map_err(|_| anyhow::anyhow!("a lane panicked"))??);
            }
            Ok(all)
        })
    }

    /// What fills a column, on one CPU. It ends with this process even if that is killed.
    fn command(&self, column: Column, cpu: usize) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "taskset", "--cpu-list", &cpu.to_string()]);
        if let Some(arguments) = column.kernel.vm_arguments() {
            let limit = column.kernel.time_limit(self.form).as_secs().to_string();
            // Not by its path: building the workspace may have put another file there since this one started.
            let own = format!("/proc/{}/exe", std::process::id());
            command.arg(own).arg("vm").args(arguments).args(["--timeout", &limit, "--"]);
        }
        command.args(["sh", "-c", &self.script(column)]).env(ENGINE_SETTING, column.engine.name());
        command
    }

    /// What a guest runs: the driver's tests, then the scenarios.
    fn script(&self, column: Column) -> String {
        let GuestPrograms { scenarios, bpf, ipvs } = self.programs;
        let mut words = vec![format!("exec '{}'", scenarios.display())];
        for part in hole::long_form() {
            if hole::is_left_out(part, column, self.form) {
                let end = if part.contains("::") { "" } else { "::" };
                words.push(format!("--skip {part}{end}"));
            }
        }
        words.extend(self.filter.map(|filter| format!("'{filter}'")));
        let driver = column
            .driver()
            .filter(|name| self.filter.is_none() && !hole::is_left_out(&driver_row(name), column, self.form));
        let Some(name) = driver else { return words.join(" ") };
        let program = if name == "bpf" { bpf } else { ipvs };
        format!(
            "echo '==== driver {name}'\n\
             '{}' --include-ignored --test-threads 1\n\
             echo \"==== driver's end $?\"\n{}",
            program.display(),
            words.join(" ")
        )
    }

    /// Runs a column, telling what it says as it comes.
    fn fill(&self, column: Column, cpu: usize, rows: &[String]) -> anyhow::Result<Filled> {
        let name = column.name();
        let start = Instant::now();
        let mut command = self.command(column, cpu);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tell(&name, "begins");
        let mut child = command.spawn().with_context(|| format!("can't run {name}"))?;
        let stdout = child.stdout.take().context("a guest's stdout")?;
        let stderr = child.stderr.take().context("a guest's stderr")?;
        let mut filled = Filled::new(column);
        let tail = std::thread::scope(|scope| {
            let errors = scope.spawn(|| {
                let mut tail = VecDeque::new();
                each_line(stderr, |line| {
                    tell(&name, line);
                    tail.push_back(line.to_owned());
                    if tail.len() > TAIL {
                        tail.pop_front();
                    }
                });
                tail
            });
            each_line(stdout, |line| {
                tell(&name, line);
                filled.read(line);
            });
            errors.join().unwrap_or_default()
        });
        let status = child.wait()?;
        filled.seconds = start.elapsed().as_secs_f64();
        tell(&name, &format!("ended after {:.0} s: {status}", filled.seconds));
        self.complete(
            &mut filled,
            rows,
            &format!("no result; the run ended with {status}:\n{}", Vec::from(tail).join("\n")),
        );
        Ok(filled)
    }

    /// Rows without a result: those that were left out, and those that the guest owes.
    fn complete(&self, filled: &mut Filled, rows: &[String], why: &str) {
        let mut all = rows.to_vec();
        if self.filter.is_none() {
            all.extend(filled.column.driver().map(driver_row));
        }
        let (left_out, owed): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|row| hole::is_left_out(row, filled.column, self.form));
        filled.fill(&left_out, &Cell::NotRun(hole::LONG_FORM.to_owned()));
        // The first one says it all.
        if let Some(first) = owed.iter().find(|row| !filled.has_result(row)) {
            filled.fill(std::slice::from_ref(first), &Cell::Failed(why.to_owned()));
            filled.fill(&owed, &Cell::Failed("no result, as above".to_owned()));
        }
    }
}

/// Tests may print anything, not only text.
fn each_line(from: impl Read, mut take: impl FnMut(&str)) {
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        take(&String::from_utf8_lossy(&line));
    }
}

#[expect(clippy::print_stdout, reason = "a command line tool reports to its terminal")]
fn tell(column: &str, line: &str) {
    println!("[{column}] {line}");
}

#[cfg(test)]
mod tests {
    use super::super::column::{Engine, Kernel};
    use super::*;

    #[test]
    fn a_guest_is_told_to_skip_what_is_left_out_of_its_column() {
        let program = |name: &str| Path::new("/programs").join(name);
        let programs =
            GuestPrograms { scenarios: program("scenarios"), bpf: program("bpf"), ipvs: program("ipvs") };
        let script = |column, form| {
            Tier { programs: &programs, form, filter: None, target: Path::new("/target") }.script(column)
        };
        let uml = |engine| Column { kernel: Kernel::Uml, engine };
        let row = "proxy::large_transfers_are_whole";
        for (engine, form, skips) in [
            (Engine::Ipvs, Form::Default, true),
            (Engine::Ipvs, Form::Long, false),
            (Engine::Ebpf, Form::Default, false),
        ] {
            let script = script(uml(engine), form);
            assert_eq!(hole::is_left_out(row, uml(engine), form), skips);
            assert_eq!(script.contains(&format!("--skip {row}")), skips, "{script}");
            assert_eq!(script.contains("--skip lane::"), skips, "{script}");
        }
    }
}
