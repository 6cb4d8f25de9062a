//! Tells the program which commit it was built from: results name it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    // Cargo also sets it when it runs the program: MANTISSA_ would make it a preference.
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    // A file that is not there would run this again each time.
    for path in watched().into_iter().filter(|path| path.exists()) {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

/// What the commit, and whether files differ from it, depends on.
fn watched() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = ["HEAD", "logs/HEAD"]
        .iter()
        .filter_map(|name| git(&["rev-parse", "--git-path", name]))
        .map(PathBuf::from)
        .collect();
    paths.push("build.rs".into());
    let crates = std::fs::read_dir(Path::new("..")).into_iter().flatten().flatten();
    paths.extend(crates.map(|entry| entry.path().join("src")));
    paths
}

/// What git prints; nothing where it is missing or this is no repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
