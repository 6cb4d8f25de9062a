//! `mantissa dtypes`: the documentation is what the program says.

#[path = "common/command.rs"]
mod command;

use std::path::Path;

use command::{json_of, mantissa};
use serde_json::Value;

fn text(arguments: &[&str]) -> String {
    let output = mantissa().arg("dtypes").args(arguments).assert().success().get_output().stdout.clone();
    String::from_utf8(output).expect("UTF-8")
}

#[test]
fn the_documentation_is_what_the_program_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/dtype-support.md");
    let written = std::fs::read_to_string(&path).expect("docs/dtype-support.md");
    assert!(
        written == text(&["--markdown"]),
        "docs/dtype-support.md is not what the program prints; write it anew with\n  \
         cargo run -p mantissa-cli -- dtypes --markdown > docs/dtype-support.md"
    );
}

#[test]
fn every_combination_is_there_and_the_tables_are_for_people() {
    let rows = json_of(mantissa().args(["dtypes", "--json"]));
    let rows = rows.as_array().expect("an array");
    let status = |wanted: &str| rows.iter().filter(|row| row["status"] == wanted).count();
    assert!(status("supported") > 0 && status("unsupported") > 0);
    assert_eq!(status("supported") + status("unsupported"), rows.len());
    let unsupported = rows.iter().filter(|row| row["status"] == "unsupported");
    assert!(
        unsupported.into_iter().all(|row| row["nearest"].as_array().is_some_and(|near| !near.is_empty()))
    );

    let tables = text(&[]);
    for row in rows {
        let family = row["family"].as_str().expect("a family");
        assert!(tables.contains(&format!("### {family} on cpu")), "{family}");
    }
    assert!(!tables.contains('|') && !tables.contains('\x1b'));
}

#[test]
fn instruction_sets_differ_in_subnormals_alone() {
    let rows = |isa: &str| json_of(mantissa().args(["dtypes", "--json", "--cpu-isa", isa]));
    let (best, plain) = (rows("avx512"), rows("scalar"));
    let flushed = |row: &&Value| row["subnormals"] == "flushed in products";
    let best: Vec<Value> = best.as_array().expect("an array").clone();
    assert!(best.iter().filter(flushed).all(|row| row["compute"] == "bf16 pairs"));
    assert!(best.iter().filter(flushed).count() > 0);
    let kept: Vec<Value> = best
        .into_iter()
        .map(|mut row| {
            if row.get("subnormals").is_some() {
                row["subnormals"] = Value::from("kept");
            }
            row
        })
        .collect();
    assert_eq!(Value::from(kept), plain);
}
