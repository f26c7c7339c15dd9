use super::super::column::{Engine, Kernel};
use super::*;

const QEMU: Column = Column { kernel: Kernel::Qemu6_12, engine: Engine::Ebpf };
const UML_IPVS: Column = Column { kernel: Kernel::Uml, engine: Engine::Ipvs };

fn filled(column: Column, lines: &str) -> Filled {
    let mut filled = Filled::new(column);
    lines.lines().for_each(|line| filled.read(line));
    filled
}

fn matrix(columns: Vec<Filled>, rows: &[&str]) -> Matrix {
    Matrix { form: Form::Default, rows: rows.iter().map(|row| (*row).to_owned()).collect(), columns }
}

#[test]
fn lines_of_test_programs_become_cells() {
    let result = |cell, seconds| Result { cell, seconds };
    let parsed = parse_line("test mesh::(leaves nothing) ... ok (1.5s)");
    assert_eq!(parsed, Some(("mesh::(leaves nothing)", result(Cell::Ok, 1.5))));
    assert_eq!(parse_line("test a ... ok"), Some(("a", result(Cell::Ok, 0.0))));
    let parsed = parse_line("test a ... FAILED (60.4s)");
    assert_eq!(parsed, Some(("a", result(Cell::Failed(String::new()), 60.4))));
    let parsed = parse_line("test a ... ignored, the kernel has no IPVS");
    assert_eq!(parsed, Some(("a", result(Cell::NotRun("the kernel has no IPVS".into()), 0.0))));
    for other in ["test result: ok. 3 passed; 0 failed", "a: residue: waited", "test a ... bench: 3"] {
        assert_eq!(parse_line(other), None, "{other}");
    }
}

#[test]
fn a_driver_is_one_row_that_counts_its_tests() {
    let run = |lines: &str| filled(QEMU, &format!("==== driver bpf\n{lines}\ntest mesh::x ... ok"));
    let good = run("test a ... ok\ntest b ... ok\n==== driver's end 0");
    assert_eq!((good.driver_tests, good.results.len()), (2, 2));
    assert_eq!(good.results["driver::bpf"].cell, Cell::Ok);
    let bad = run("test a ... ok\ntest b ... FAILED\n==== driver's end 101");
    assert_eq!(bad.results["driver::bpf"].cell, Cell::Failed("b".into()));
    let none = run("==== driver's end 0");
    assert_eq!(none.results["driver::bpf"].cell, Cell::Failed("exit 0 after 0 tests".into()));
    let ignored = run("test a ... ok\ntest b ... ignored, no IPVS\n==== driver's end 0");
    assert_eq!(ignored.results["driver::bpf"].cell, Cell::Failed("b".into()));
}

#[test]
fn a_hole_that_should_not_be_fails_the_tier() {
    let rows = ["mesh::x", "mesh::y"];
    let whole = matrix(vec![filled(UML_IPVS, "test mesh::x ... ok\ntest mesh::y ... ok")], &rows);
    assert_eq!(whole.problems(), Vec::<String>::new());
    let hole = matrix(vec![filled(UML_IPVS, "test mesh::x ... ok\ntest mesh::y ... ignored, tired")], &rows);
    assert_eq!(hole.problems(), ["mesh::y on uml-6.1/ipvs: not run, but should have: tired"]);
    let silent = matrix(vec![filled(UML_IPVS, "test mesh::x ... ok")], &rows);
    assert_eq!(silent.problems(), ["mesh::y on uml-6.1/ipvs: no result"]);
    let failed = matrix(vec![filled(UML_IPVS, "test mesh::x ... ok\ntest mesh::y ... FAILED (1s)")], &rows);
    assert_eq!(failed.problems(), ["mesh::y on uml-6.1/ipvs: FAILED"]);
    let told = "test mesh::x ... ok\ntest mesh::y ... FAILED (1s)\n\n---- mesh::y ----\nn1 sulks\nlog";
    let told = matrix(vec![filled(UML_IPVS, told)], &rows);
    assert_eq!(told.problems(), ["mesh::y on uml-6.1/ipvs: FAILED n1 sulks"]);
}

#[test]
fn an_expected_hole_is_none_but_has_to_be_one() {
    let row = "mesh::no_conntrack_and_no_rule_on_the_path";
    let ignored = format!("test {row} ... ignored, promised by engine ebpf only");
    assert!(matrix(vec![filled(UML_IPVS, &ignored)], &[row]).problems().is_empty());
    assert_eq!(matrix(vec![filled(QEMU, &ignored)], &[row]).problems().len(), 1);
    let ran = matrix(vec![filled(UML_IPVS, &format!("test {row} ... ok"))], &[row]);
    assert!(ran.problems()[0].contains("although it is listed"), "{:?}", ran.problems());
}

#[test]
fn a_group_of_which_a_column_lacks_all_is_not_begun() {
    let rows = ["mesh::(start)", "mesh::no_conntrack_and_no_rule_on_the_path", "mesh::(leaves nothing)"];
    let ignored = rows.map(|row| format!("test {row} ... ignored, no nftables\n")).concat();
    assert_eq!(matrix(vec![filled(UML_IPVS, &ignored)], &rows).problems(), Vec::<String>::new());
    // With another one, it has to be.
    let rows = [&rows[..], &["mesh::x"]].concat();
    let begun = matrix(vec![filled(UML_IPVS, &(ignored + "test mesh::x ... ok"))], &rows);
    assert_eq!(begun.problems().len(), 2, "{:?}", begun.problems());
}

#[test]
fn the_long_form_expects_what_the_default_leaves_out() {
    let row = format!("{}::x", hole::LONG_FORM_ONLY[0]);
    let mut column = Filled::new(QEMU);
    column.fill(std::slice::from_ref(&row), &Cell::NotRun(hole::LONG_FORM.into()));
    let mut matrix = matrix(vec![column], &[&row]);
    assert!(matrix.problems().is_empty());
    matrix.form = Form::Long;
    assert_eq!(matrix.problems().len(), 1);
}

#[test]
fn the_table_shows_every_cell_and_why_it_is_empty() {
    let left =
        filled(UML_IPVS, "test mesh::x ... ok (1.0s)\n==== driver ipvs\ntest a ... ok\n==== driver's end 0");
    let right = filled(QEMU, "test mesh::x ... ignored, why");
    let matrix = matrix(vec![left, right], &["mesh::x", "mesh::y", "driver::ipvs"]);
    assert_eq!(
        matrix.markdown(),
        "| scenario | uml-6.1/ipvs | qemu-6.12/ebpf |\n|---|---|---|\n\
         | mesh::x | ok | not run: why |\n| mesh::y | **no result** | **no result** |\n| driver::ipvs | ok | · |\n"
    );
    let json = matrix.json();
    assert_eq!(json["rows"][0]["cells"]["uml-6.1/ipvs"]["seconds"], 1.0);
    assert_eq!(json["rows"][0]["cells"]["qemu-6.12/ebpf"]["reason"], "why");
    assert_eq!(json["columns"][0]["driverTests"], 1);
}

#[test]
fn a_guest_that_dies_owes_all_rows_without_a_result() {
    let mut column = filled(QEMU, "test mesh::x ... ok");
    column.fill(&["mesh::x".into(), "mesh::y".into()], &Cell::Failed("Kernel panic".into()));
    let matrix = matrix(vec![column], &["mesh::x", "mesh::y"]);
    assert_eq!(matrix.problems(), ["mesh::y on qemu-6.12/ebpf: FAILED Kernel panic"]);
}
