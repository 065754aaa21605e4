//! Progress on stderr: a spinner on a terminal, one line per step elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The time between two frames of the spinner: fluid to the eye, no load to speak of.
const FRAME_EVERY: Duration = Duration::from_millis(100);

/// The steps of a lab command.
#[derive(Debug)]
pub struct Progress {
    spinner: Option<ProgressBar>,
    step: Option<(String, Instant)>,
    verbose: bool,
}

impl Progress {
    /// Creates the progress of a command that begins. `verbose` shows the commands it runs too.
    #[must_use]
    pub fn new(verbose: bool) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(FRAME_EVERY);
            bar
        });
        Self { spinner, step: None, verbose }
    }

    /// Ends the present step and begins the next one.
    pub fn step(&mut self, what: impl Into<String>) {
        self.finish();
        let what = what.into();
        if let Some(spinner) = &self.spinner {
            spinner.reset_elapsed();
            spinner.set_message(what.clone());
        }
        self.step = Some((what, Instant::now()));
    }

    /// Shows how far the present step is.
    pub fn detail(&self, detail: &str) {
        if let (Some(spinner), Some((what, _))) = (&self.spinner, &self.step) {
            spinner.set_message(format!("{what}: {detail}"));
        }
    }

    /// Shows a command that is about to run, if that is wanted.
    pub fn command(&self, command: &impl std::fmt::Display) {
        if self.verbose {
            self.line(&format!("+ {command}"));
        }
    }

    /// Ends the present step as done.
    pub fn finish(&mut self) {
        if let Some((what, began)) = self.step.take() {
            self.line(&format!("{what}: done in {} ms", began.elapsed().as_millis()));
        }
        if let Some(spinner) = &self.spinner {
            spinner.set_message("");
        }
    }

    /// Ends the present step as failed or given up; nothing more is drawn.
    pub fn abandon(&mut self) {
        if let Some((what, _)) = self.step.take() {
            self.line(&format!("{what}: not finished"));
        }
        self.clear();
    }

    /// Takes the spinner from the terminal.
    pub fn clear(&mut self) {
        self.finish();
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// Prints one line above the spinner.
    pub fn line(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.println(text),
            // Nobody is left to tell when stderr is closed.
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }
}
