//! Waiting for what is expected any moment.

use std::time::{Duration, Instant};

/// The pause between two looks: short beside every deadline, long enough not to load the machine.
const POLL: Duration = Duration::from_millis(20);

/// The time for something that takes milliseconds on an idle machine: a loaded one gets three orders of magnitude more.
pub const SOON: Duration = Duration::from_secs(20);

/// Looks until `look` gives a value, and returns it; panics with the last reason at the deadline.
pub fn wait_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(reason) if began.elapsed() >= deadline => {
                panic!("not within {} s: {what}\nlast seen: {reason}", deadline.as_secs_f32());
            }
            Err(_) => pause(POLL),
        }
    }
}

/// Lets time pass. Use it for "for so long nothing happens", never for "by then it will have happened".
#[expect(clippy::disallowed_methods, reason = "tests have no runtime: every test is a thread of its own")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
