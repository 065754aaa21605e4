//! A filter for warnings that repeat. They are logged when they first come and when something in them has changed, then
//! at most every 30 s. A fight with another program over one route must not fill a disk.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// The time that a warning is silent after it was logged.
const REPEAT_AFTER: Duration = Duration::from_secs(30);
/// The number of warnings remembered at a time. Beyond it all pass: they are many because they differ.
const REMEMBERED: usize = 1024;

/// Lets a warning or error pass unless the same, with equal fields, passed less than 30 s ago.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<Memory>);

impl<S: Subscriber> Filter<S> for Repeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        // An event below a warning is a transition, or asked for: each counts.
        if *event.metadata().level() > Level::WARN {
            return true;
        }
        let mut fingerprint = Fingerprint::default();
        fingerprint.0.write(event.metadata().target().as_bytes());
        event.record(&mut fingerprint);
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.admit(fingerprint.0.finish(), Instant::now())
    }
}

/// The times at which warnings were last logged, by fingerprint.
#[derive(Debug, Default)]
struct Memory(HashMap<u64, Instant>);

impl Memory {
    fn admit(&mut self, event: u64, now: Instant) -> bool {
        if self.0.get(&event).is_some_and(|logged| now.saturating_duration_since(*logged) < REPEAT_AFTER) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, logged| now.saturating_duration_since(*logged) < REPEAT_AFTER);
        }
        if self.0.len() < REMEMBERED {
            self.0.insert(event, now);
        }
        true
    }
}

/// A hash over an event's fields.
#[derive(Default)]
struct Fingerprint(DefaultHasher);

impl Visit for Fingerprint {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.write(field.name().as_bytes());
        // Writing into a hasher cannot fail.
        let _ = write!(Text(&mut self.0), "{value:?}");
    }
}

/// Text that goes into a hasher.
struct Text<'a>(&'a mut DefaultHasher);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::{Layer, SubscriberExt};

    use super::*;

    #[test]
    fn a_repeated_warning_is_silent_for_half_a_minute_and_then_said_again() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        assert!(memory.admit(1, start));
        assert!(!memory.admit(1, start + Duration::from_secs(29)));
        assert!(memory.admit(2, start));
        assert!(memory.admit(1, start + Duration::from_secs(30)));
        assert!(!memory.admit(1, start + Duration::from_secs(31)));
    }

    #[test]
    fn ever_new_warnings_do_not_fill_the_memory_and_all_pass() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        assert!((0..5000).all(|event| memory.admit(event, start)));
        assert_eq!(memory.0.len(), REMEMBERED);
        assert!(memory.admit(0, start + REPEAT_AFTER));
        assert_eq!(memory.0.len(), 1);
    }

    /// Counts what comes through.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(event.metadata().level().to_string());
        }
    }

    #[test]
    fn only_warnings_with_equal_fields_are_held_back() {
        let seen = Seen::default();
        let subscriber = tracing_subscriber::registry().with(seen.clone().with_filter(Repeats::default()));
        tracing::subscriber::with_default(subscriber, || {
            for object in ["a", "a", "b"] {
                tracing::warn!(object, "in the way");
            }
            for _ in 0..2 {
                tracing::info!("a transition");
            }
        });
        assert_eq!(*seen.0.lock().unwrap(), ["WARN", "WARN", "INFO", "INFO"]);
    }
}
