//! A JSON object read as Go's `encoding/json` reads it into a struct: names in any case, `null` as absent.

use flatnet_model::text::excerpt;
use serde_json::{Map, Value};

/// The rest of an object while its known fields are taken out of it. Errors name the field.
pub(super) struct Fields {
    /// Prefix of field names in errors, e.g. `Backend.`.
    path: &'static str,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads `bytes`, at most `limit` of them. serde_json's own limit of 128 nested levels stands.
    pub(super) fn parse(bytes: &[u8], limit: usize) -> Result<Self, String> {
        if bytes.len() > limit {
            return Err(format!("the value has {} bytes, more than the {limit} allowed", bytes.len()));
        }
        let value = serde_json::from_slice(bytes).map_err(|error| format!("the value is not JSON: {error}"))?;
        Self::from_value("", value).ok_or_else(|| "the value is not a JSON object".to_owned())
    }

    fn from_value(path: &'static str, value: Value) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self { path, map }),
            _ => None,
        }
    }

    /// Takes the objects in the array `name`, at most `limit`; none if it is not there.
    pub(super) fn objects(&mut self, name: &str, limit: usize, path: &'static str) -> Result<Vec<Self>, String> {
        let outer = self.path;
        let values = match self.take(name)? {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values,
            Some(_) => return Err(format!("{outer}{name} is not an array")),
        };
        if values.len() > limit {
            return Err(format!("{outer}{name} has {} entries, more than the {limit} allowed", values.len()));
        }
        let convert = |value: Value| {
            Self::from_value(path, value).ok_or_else(|| format!("{outer}{name} has what is no JSON object"))
        };
        values.into_iter().map(convert).collect()
    }

    /// Returns the fields that were not taken.
    pub(super) fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// Takes field `name` in whatever case it is written; twice is ambiguous and refused.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<Value>, String> {
        let mut spellings = self.map.keys().filter(|key| key.eq_ignore_ascii_case(name));
        let first = spellings.next().cloned();
        if spellings.next().is_some() {
            return Err(format!("{}{name} is given twice in different spellings", self.path));
        }
        let value = first.and_then(|key| self.map.remove(&key));
        Ok(value.filter(|value| !value.is_null()))
    }

    /// Takes a whole number that is not negative.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        let path = self.path;
        let convert = |value: Value| {
            value.as_u64().ok_or_else(|| format!("{path}{name} {} is not a whole number from 0 up", show(&value)))
        };
        self.take(name)?.map(convert).transpose()
    }

    /// Takes a whole number that fits 32 bits.
    pub(super) fn number32(&mut self, name: &str) -> Result<Option<u32>, String> {
        let path = self.path;
        let convert = |value| u32::try_from(value).map_err(|_| format!("{path}{name} {value} is too large"));
        self.number(name)?.map(convert).transpose()
    }

    /// Takes `true` or `false`.
    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, String> {
        let path = self.path;
        let convert =
            |value: Value| value.as_bool().ok_or_else(|| format!("{path}{name} {} is not true or false", show(&value)));
        self.take(name)?.map(convert).transpose()
    }

    /// Takes a string.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        let path = self.path;
        match self.take(name)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{path}{name} {} is not a string", show(&other))),
        }
    }

    /// Takes the strings in the array `name`, at most `limit`; none if it is not there. `what` tells what each should
    /// be.
    pub(super) fn texts(&mut self, name: &str, limit: usize, what: &str) -> Result<Vec<String>, String> {
        let path = self.path;
        let values = match self.take(name)? {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values,
            Some(_) => return Err(format!("{path}{name} is not an array")),
        };
        if values.len() > limit {
            return Err(format!("{path}{name} has {} entries, more than the {limit} allowed", values.len()));
        }
        let convert = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(format!("{path}{name} {} is not {what}", show(&other))),
        };
        values.into_iter().map(convert).collect()
    }

    /// Takes a string that reads as a `T`; `what` tells what that is.
    pub(super) fn parsed<T: std::str::FromStr>(&mut self, name: &str, what: &str) -> Result<Option<T>, String> {
        let path = self.path;
        let convert =
            |text: String| text.parse().map_err(|_| format!("{path}{name} {:?} is not {what}", excerpt(&text)));
        self.text(name)?.map(convert).transpose()
    }

    /// Takes an object within; its errors begin with `path`.
    pub(super) fn object(&mut self, name: &str, path: &'static str) -> Result<Option<Self>, String> {
        let outer = self.path;
        let convert =
            |value: Value| Self::from_value(path, value).ok_or_else(|| format!("{outer}{name} is not a JSON object"));
        self.take(name)?.map(convert).transpose()
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Array(_) => "[…]".to_owned(),
        Value::Object(_) => "{…}".to_owned(),
        scalar => excerpt(&scalar.to_string()),
    }
}

/// An object written field by field, in the order given: flannel's readers do not mind, people do.
pub(super) struct Writer(String);

impl Writer {
    pub(super) fn new() -> Self {
        Self("{".to_owned())
    }

    pub(super) fn field(&mut self, name: &str, value: impl Into<Value>) {
        self.raw(name, &value.into().to_string());
    }

    /// Writes `json` as it is.
    pub(super) fn raw(&mut self, name: &str, json: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&Value::from(name).to_string());
        self.0.push(':');
        self.0.push_str(json);
    }

    pub(super) fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}
