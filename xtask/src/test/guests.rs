//! The vm tier: the scenarios on other kernels, in guests that run side by side.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
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

/// A run of the tier: columns that wait, and lanes that fill them, a CPU each.
pub(super) struct Guests {
    tier: Arc<Tier>,
    lanes: Vec<Lane>,
    /// Where the matrix goes.
    target: PathBuf,
}

type Lane = JoinHandle<anyhow::Result<Vec<Filled>>>;

/// What lanes share.
struct Tier {
    programs: GuestPrograms,
    form: Form,
    filter: Option<String>,
    /// All rows of scenarios that the filter leaves.
    rows: Vec<String>,
    waiting: Mutex<VecDeque<Column>>,
    /// Whether tests run on the host, whose time is theirs first.
    has_tests_beside: AtomicBool,
}

impl Guests {
    pub(super) fn new(
        programs: GuestPrograms,
        form: Form,
        filter: Option<String>,
        target: PathBuf,
    ) -> anyhow::Result<Self> {
        let rows = list_rows(&programs.scenarios, filter.as_deref())?;
        let waiting = Mutex::new(Column::of_guests(form).into());
        let tier = Arc::new(Tier {
            programs,
            form,
            filter,
            rows,
            waiting,
            has_tests_beside: AtomicBool::new(false),
        });
        Ok(Self { tier, lanes: Vec::new(), target })
    }

    /// Begins with the first column while other tests go on, on the last CPU, if there is another one for them. It takes
    /// the time that they leave: most of what tests on the host do is waiting.
    pub(super) fn begin_beside(&mut self) -> anyhow::Result<()> {
        let cpus = thread::available_parallelism()?.get();
        if cpus > 1 {
            self.tier.has_tests_beside.store(true, Ordering::Relaxed);
            self.begin(cpus - 1);
        }
        Ok(())
    }

    fn begin(&mut self, cpu: usize) {
        let tier = Arc::clone(&self.tier);
        // A thread of its own: when something else fails, this process ends, and with it the guest.
        self.lanes.push(thread::spawn(move || tier.fill_in_turn(cpu)));
    }

    /// Fills every column that is not there yet, as many at once as there are CPUs.
    pub(super) fn finish(mut self, host: Option<Filled>) -> anyhow::Result<Matrix> {
        self.tier.has_tests_beside.store(false, Ordering::Relaxed);
        let waiting = {
            let mut waiting = self.tier.waiting();
            if host.is_none() {
                waiting.push_front(Column::HOST);
            }
            waiting.len()
        };
        let free = thread::available_parallelism()?.get() - self.lanes.len();
        for cpu in 0..free.min(waiting) {
            self.begin(cpu);
        }
        let mut columns: Vec<_> = host.into_iter().collect();
        for lane in self.lanes {
            columns.extend(lane.join().map_err(|_| anyhow::anyhow!("a lane panicked"))??);
        }
        columns.sort_by_key(|filled| filled.column);
        let mut rows = self.tier.rows.clone();
        if self.tier.filter.is_none() {
            rows.extend(["bpf", "ipvs"].map(driver_row));
        }
        let matrix = Matrix { form: self.tier.form, rows, columns };
        fs::write(self.target.join("matrix.md"), matrix.markdown())?;
        fs::write(self.target.join("matrix.json"), format!("{:#}\n", matrix.json()))?;
        Ok(matrix)
    }
}

/// All rows of scenarios that a filter leaves.
fn list_rows(scenarios: &Path, filter: Option<&str>) -> anyhow::Result<Vec<String>> {
    let output = Command::new(scenarios).args(filter).arg("--list").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

impl Tier {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Column>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills columns on a CPU until none waits.
    fn fill_in_turn(&self, cpu: usize) -> anyhow::Result<Vec<Filled>> {
        let next = || self.waiting().pop_front();
        std::iter::from_fn(next).map(|column| self.fill(column, cpu)).collect()
    }

    /// What fills a column, on one CPU. It ends with this process even if that is killed.
    fn command(&self, column: Column, cpu: usize) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "taskset", "--cpu-list", &cpu.to_string()]);
        if self.has_tests_beside.load(Ordering::Relaxed) {
            // SCHED_IDLE, sched(7): only the time that nobody else wants.
            command.args(["chrt", "--idle", "0"]);
        }
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
        let GuestPrograms { scenarios, bpf, ipvs } = &self.programs;
        let mut words = vec![format!("exec '{}'", scenarios.display())];
        for part in hole::long_form() {
            if hole::is_left_out(part, column, self.form) {
                let end = if part.contains("::") { "" } else { "::" };
                words.push(format!("--skip {part}{end}"));
            }
        }
        words.extend(self.filter.as_ref().map(|filter| format!("'{filter}'")));
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
    fn fill(&self, column: Column, cpu: usize) -> anyhow::Result<Filled> {
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
            &format!("no result; the run ended with {status}:\n{}", Vec::from(tail).join("\n")),
        );
        Ok(filled)
    }

    /// Rows without a result: those that were left out, and those that the guest owes.
    fn complete(&self, filled: &mut Filled, why: &str) {
        let mut all = self.rows.clone();
        if self.filter.is_none() {
            all.extend(filled.column.driver().map(driver_row));
        }
        let leaves_out = |row: &str| hole::is_left_out(row, filled.column, self.form).then_some(());
        let (left_out, owed): (Vec<_>, Vec<_>) =
            all.iter().cloned().partition(|row| hole::of_row(row, &all, leaves_out).is_some());
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

    fn tier(form: Form, filter: Option<String>) -> Tier {
        let program = |name: &str| Path::new("/programs").join(name);
        let programs =
            GuestPrograms { scenarios: program("scenarios"), bpf: program("bpf"), ipvs: program("ipvs") };
        Tier {
            programs,
            form,
            filter,
            rows: Vec::new(),
            waiting: Mutex::default(),
            has_tests_beside: AtomicBool::new(false),
        }
    }

    #[test]
    fn beside_tests_a_guest_has_the_time_they_leave() {
        let tier = tier(Form::Default, None);
        let words = || {
            let command = tier.command(Column { kernel: Kernel::Uml, engine: Engine::Ebpf }, 1);
            let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
            words.join(" ")
        };
        let alone = words();
        assert!(alone.starts_with("--pdeathsig TERM taskset --cpu-list 1 /proc/"), "{alone}");
        tier.has_tests_beside.store(true, Ordering::Relaxed);
        let idle = words();
        assert!(idle.starts_with("--pdeathsig TERM taskset --cpu-list 1 chrt --idle 0 /proc/"), "{idle}");
    }

    #[test]
    fn a_guest_owes_no_group_of_which_it_leaves_out_all() {
        let rows = ["proxy::(start)", "proxy::large_transfers_are_whole", "proxy::(leaves nothing)"];
        let rows = rows.map(str::to_owned).to_vec();
        let column = Column { kernel: Kernel::Uml, engine: Engine::Ipvs };
        let filter = Some("large_transfers".to_owned());
        for (form, owes) in [(Form::Default, 0), (Form::Long, 3)] {
            let mut filled = Filled::new(column);
            Tier { rows: rows.clone(), ..tier(form, filter.clone()) }.complete(&mut filled, "it ended");
            assert_eq!(filled.count(|cell| matches!(cell, Cell::Failed(_))), owes);
        }
    }

    #[test]
    fn a_guest_is_told_to_skip_what_is_left_out_of_its_column() {
        let script = |column, form| tier(form, None).script(column);
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
