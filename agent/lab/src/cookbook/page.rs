//! The page `docs/cookbook.md` as data.

use std::fmt;

/// The text of the page, as people read it.
const PAGE: &str = include_str!("../../../../docs/cookbook.md");
/// The mark of a line that is tried until it succeeds: what it waits for is under way, or it is the check.
const PATIENT: &str = "   # until it works";

/// A recipe: a section of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The name on the command line.
    pub name: String,
    /// The heading.
    pub title: String,
    /// The text on what the recipe sets up.
    pub introduction: String,
    /// A drawing of the set-up.
    pub diagram: String,
    /// The parts: by hand, what that leaves to be desired, with agent.
    pub ways: Vec<Way>,
}

/// A part of a recipe. Without lines it is text alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The heading, without what the part needs.
    pub title: String,
    /// The need of the part that a machine may not meet, if it has one.
    pub needs: Option<String>,
    /// The text before the lines.
    pub text: String,
    /// The lines that are typed.
    pub lines: Vec<Line>,
}

/// A line with a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The place where it is typed: `host1`, `c1`.
    pub place: String,
    /// The command for a shell.
    pub command: String,
    /// True if the command goes on in the background.
    pub background: bool,
    /// True if the command is tried until it succeeds.
    pub patient: bool,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let background = if self.background { " &" } else { "" };
        write!(f, "{}# {}{background}", self.place, self.command)
    }
}

/// Returns all recipes, in the page's order.
#[must_use]
pub fn recipes() -> Vec<Recipe> {
    parse(PAGE)
}

fn parse(page: &str) -> Vec<Recipe> {
    page.split("\n## ").skip(1).filter_map(recipe).collect()
}

fn recipe(section: &str) -> Option<Recipe> {
    let mut parts = section.split("\n### ");
    let (heading, body) = parts.next()?.split_once('\n')?;
    let (name, title) = heading.split_once(": ")?;
    let (introduction, diagram) = split_block(body, "text");
    let ways = parts.map(way).collect();
    Some(Recipe { name: name.to_owned(), title: capitalised(title), introduction, diagram, ways })
}

fn way(part: &str) -> Way {
    let (heading, body) = part.split_once('\n').unwrap_or((part, ""));
    let (title, needs) = match heading.strip_suffix(')').and_then(|heading| heading.split_once(" (needs ")) {
        Some((title, needs)) => (title, Some(needs.to_owned())),
        None => (heading, None),
    };
    let (text, typed) = split_block(body, "console");
    let text = if text.is_empty() { text } else { text + "\n" };
    Way { title: title.to_owned(), needs, text, lines: typed.lines().filter_map(line).collect() }
}

fn line(text: &str) -> Option<Line> {
    // A line without a place is a remark.
    let (place, command) = text.split_once("# ").filter(|(place, _)| !place.is_empty())?;
    let (command, patient) = command.strip_suffix(PATIENT).map_or((command, false), |command| (command, true));
    let (command, background) = command.strip_suffix(" &").map_or((command, false), |command| (command, true));
    Some(Line { place: place.to_owned(), command: command.to_owned(), background, patient })
}

/// Returns the text before the first fenced block of `kind`, and the block.
fn split_block(body: &str, kind: &str) -> (String, String) {
    let (text, rest) = body.split_once(&format!("```{kind}\n")).unwrap_or((body, ""));
    let block = rest.split("```").next().unwrap_or_default();
    let text = text.trim();
    (if text.is_empty() { String::new() } else { format!("{text}\n") }, block.to_owned())
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_of_the_page_has_a_drawing_both_ways_what_the_first_lacks_and_checks() {
        let recipes = recipes();
        let names: Vec<&str> = recipes.iter().map(|recipe| recipe.name.as_str()).collect();
        assert_eq!(names, ["gre", "flannel", "bridge", "pipework", "namespaces"]);
        for recipe in &recipes {
            let name = &recipe.name;
            assert!(!recipe.introduction.is_empty() && !recipe.diagram.is_empty(), "{name}");
            let titles: Vec<&str> = recipe.ways.iter().map(|way| way.title.as_str()).collect();
            assert_eq!(titles, ["By hand", "What that leaves to be desired", "With agent"], "{name}");
            let [hand, lack, agent] = recipe.ways.as_slice() else { panic!("{name}") };
            assert!(lack.lines.is_empty() && lack.text.len() > 80, "{name}");
            for way in [hand, agent] {
                assert!(way.lines.iter().any(|line| line.patient), "{name}, {}: nothing is checked", way.title);
                assert!(way.lines.iter().all(|line| line.place.len() <= 6), "{name}: {:?}", way.lines);
            }
            assert!(agent.lines.iter().any(|line| line.command.starts_with("agent join") && line.background), "{name}");
        }
    }

    #[test]
    fn a_line_is_where_what_and_how_it_is_typed() {
        let typed = |text| line(text).map(|line| (line.to_string(), line.background, line.patient));
        assert_eq!(
            typed("c1# ping -c 3 10.0.0.1   # until it works"),
            Some(("c1# ping -c 3 10.0.0.1".to_owned(), false, true))
        );
        assert_eq!(typed("host1# agent join x &"), Some(("host1# agent join x &".to_owned(), true, false)));
        assert_eq!(typed("# a remark"), None);
        assert_eq!(typed(""), None);
    }
}
