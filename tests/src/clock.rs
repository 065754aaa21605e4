//! A wall clock that one process has for itself, and a test sets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::netns::run;

/// Shifts the wall clock of a process by the seconds in the file `SHIFT_FILE`, read at every call. The monotonic clock
/// is left alone, as the kernel leaves it when somebody sets the time.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <sys/time.h>
#include <unistd.h>
#include <fcntl.h>
#include <sys/syscall.h>
static long shift(void) {
    char text[32]; long value = 0; const char *path = getenv("SHIFT_FILE"); if (!path) return 0;
    int file = open(path, O_RDONLY | O_CLOEXEC); if (file < 0) return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    if (length > 0) { text[length] = 0; value = atol(text); }
    close(file); return value;
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += shift();
    return result;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec; at->tv_usec = now.tv_nsec / 1000; return 0;
}
time_t time(time_t *at) { struct timespec now; clock_gettime(CLOCK_REALTIME, &now); if (at) *at = now.tv_sec; return now.tv_sec; }
"#;

/// The clock of the processes that are started with its environment.
#[derive(Debug)]
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    /// Makes a clock that is right; its files are in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        let source = directory.join("shim.c");
        let clock = Self { library: directory.join("shim.so"), file: directory.join("shift") };
        fs::write(&source, SHIM).unwrap();
        clock.shift(0);
        let ran = run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&clock.library, &source]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        clock
    }

    /// Returns the environment with which its processes are started.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let variable = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
        vec![variable("LD_PRELOAD", &self.library), variable("SHIFT_FILE", &self.file)]
    }

    /// Sets the clock ahead by so many seconds from now on.
    pub fn shift(&self, secs: i64) {
        fs::write(&self.file, secs.to_string()).unwrap();
    }
}
