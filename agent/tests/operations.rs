//! `docs/operations.md` names every problem code and every check of `agent doctor`, and none that is not there.
#![expect(clippy::unwrap_used, reason = "this is test code: a failed assumption fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What stands before a code in the sources; blanks and brackets may be between.
const BEFORE_A_CODE: [&str; 3] = ["Problem::new(", "Refusal::failed(", "Refusal::unreachable("];
/// In the lease keeper's table of problems a code begins an arm's value.
const BEFORE_A_LEASE_CODE: [&str; 2] = ["=>", "const MOVED: &str ="];
/// A code with a name of its own.
const BEFORE_A_NAMED_CODE: [&str; 1] = ["const UNWRITABLE: &str ="];
const BEFORE_A_CHECK: [&str; 4] = ["Check::ok(", "Check::warning(", "Check::failure(", "const NAME: &str ="];

fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy().into_owned();
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((name, text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()));
        }
    }
}

/// The string literals right after any of `markers`.
fn literals(text: &str, markers: &[&str], found: &mut BTreeSet<String>) {
    for marker in markers {
        for after in text.split(marker).skip(1) {
            let literal = after
                .trim_start_matches([' ', '\n', '(', '{'])
                .strip_prefix('"')
                .and_then(|rest| rest.split('"').next());
            let is_code =
                |code: &&str| !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            found.extend(literal.filter(is_code).map(str::to_owned));
        }
    }
}

/// The first column of the table under the heading `heading`: what is between backquotes.
fn documented(heading: &str) -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let text = fs::read_to_string(file).unwrap();
    let section = text.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap_or_default().to_owned()).collect()
}

fn all_sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    sources(&agent.join("src"), &mut found);
    sources(&agent.join("core/src"), &mut found);
    found
}

#[test]
fn every_problem_code_is_documented() {
    let mut codes = BTreeSet::new();
    for (file, text) in all_sources() {
        literals(&text, &BEFORE_A_CODE, &mut codes);
        literals(&text, &BEFORE_A_NAMED_CODE, &mut codes);
        if file.ends_with("lease_keeper/problems.rs") {
            literals(&text, &BEFORE_A_LEASE_CODE, &mut codes);
        }
    }
    assert!(codes.len() > 30, "the sources are not read as they should be: {codes:?}");
    assert_eq!(codes, documented("Problem codes"), "left: in the sources; right: in docs/operations.md");
}

#[test]
fn every_check_of_doctor_is_documented() {
    let mut checks = BTreeSet::new();
    for (_, text) in all_sources().iter().filter(|(file, _)| file.contains("/doctor")) {
        literals(text, &BEFORE_A_CHECK, &mut checks);
    }
    assert!(checks.len() > 15, "the sources are not read as they should be: {checks:?}");
    assert_eq!(checks, documented("Doctor's checks"), "left: in the sources; right: in docs/operations.md");
}
