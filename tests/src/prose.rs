//! What is asked of comments: no line is wider than the code may be, and documentation is sentences that name their
//! subject.

use std::fs;
use std::path::{Path, PathBuf};

/// Columns of a line, as rustfmt.toml has it for code.
pub const WIDTH: usize = 120;

/// A comment, from the line on which it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    /// The file and the line.
    pub place: String,
    /// Its first line, without the marks.
    pub first: String,
    /// True of `///` and `//!`.
    pub is_documentation: bool,
}

/// All Rust sources below `root`, without what cargo makes.
#[must_use]
pub fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The comments of `text` that have lines of their own.
#[must_use]
pub fn comments(file: &str, text: &str) -> Vec<Comment> {
    let mut found = Vec::new();
    let mut is_inside = false;
    for (number, line) in text.lines().enumerate() {
        let mark = ["///", "//!", "//"].into_iter().find(|mark| line.trim_start().starts_with(mark));
        if let Some(mark) = mark.filter(|_| !is_inside) {
            let first = line.trim_start().trim_start_matches(mark).trim().to_owned();
            found.push(Comment { place: format!("{file}:{}", number + 1), first, is_documentation: mark != "//" });
        }
        is_inside = mark.is_some();
    }
    found
}

/// True where a comment begins as a clause that belongs to a sentence nobody wrote: "What is wrong." of what, for whom?
#[must_use]
pub fn lacks_a_subject(first: &str) -> bool {
    const CLAUSES: [&str; 14] = [
        "What", "Whether", "Where", "That", "Those", "How", "Who", "Whom", "Whose", "Why", "When", "Which", "As",
        "Likewise",
    ];
    /// "When the disk is full, the store says so." is a sentence.
    const ADVERBIAL: [&str; 4] = ["When", "Where", "How", "As"];
    let word: String = first.chars().take_while(|c| c.is_alphanumeric()).collect();
    let sentence = first.split('.').next().unwrap_or_default();
    CLAUSES.contains(&word.as_str()) && !(ADVERBIAL.contains(&word.as_str()) && sentence.contains(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn no_comment_is_wider_than_code_may_be() {
        let mut wide = Vec::new();
        for path in sources(&root()) {
            for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
                if line.trim_start().starts_with("//") && line.chars().count() > WIDTH {
                    wide.push(format!("{}:{}", path.display(), number + 1));
                }
            }
        }
        assert!(wide.is_empty(), "{} comment lines are wider than {WIDTH} columns: {}", wide.len(), wide.join(" "));
    }

    #[test]
    fn documentation_is_sentences_with_a_subject() {
        /// In a hundred: some of those that this takes for clauses are right as they are.
        const MOST: usize = 5;
        let (mut all, mut clauses) = (0, Vec::new());
        for path in sources(&root()) {
            let text = fs::read_to_string(&path).unwrap();
            for comment in comments(&path.display().to_string(), &text) {
                if comment.is_documentation {
                    all += 1;
                    clauses.extend(lacks_a_subject(&comment.first).then_some(comment));
                }
            }
        }
        assert!(all > 4000, "only {all} comments were found");
        let listed: Vec<String> = clauses.iter().map(|clause| format!("{}: {}", clause.place, clause.first)).collect();
        assert!(clauses.len() * 100 <= all * MOST, "{} of {all}:\n{}", clauses.len(), listed.join("\n"));
    }

    /// A map that leads nowhere is worse than none.
    #[test]
    fn files_that_the_maps_name_are_there() {
        let mut named = 0;
        for map in ["CONTRIBUTING.md", "docs/glossary.md", "docs/architecture.md"] {
            let text = fs::read_to_string(root().join(map)).unwrap();
            // What is between a pair of backticks has an odd number.
            for word in text.split('`').skip(1).step_by(2) {
                let is_path =
                    ["agent/", "controlplane/", "proto/", "tests/", "docs/"].iter().any(|top| word.starts_with(top));
                if is_path && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) {
                    named += 1;
                    assert!(root().join(word).exists(), "{map} names {word}");
                }
            }
        }
        assert!(named > 30, "only {named} were found");
    }

    #[test]
    fn clauses_are_told_from_sentences() {
        for clause in
            ["What is wrong, in one sentence.", "Whether it is up.", "Where its env file goes.", "That of a run."]
        {
            assert!(lacks_a_subject(clause), "{clause}");
        }
        for sentence in ["When the disk is full, the store says so.", "The device.", "Whatever it is, it stays.", ""] {
            assert!(!lacks_a_subject(sentence), "{sentence}");
        }
        let text = "/// One.\n/// Two.\nfn f() {}\n    // Three.\n";
        let found: Vec<(bool, String)> =
            comments("f", text).into_iter().map(|c| (c.is_documentation, c.first)).collect();
        assert_eq!(found, [(true, "One.".to_owned()), (false, "Three.".to_owned())]);
    }
}
