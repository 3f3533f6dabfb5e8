//! Metadata under construction.

use super::value::{Array, Value, ValueType};

/// Metadata as the reference's converter collects it: a key set again keeps its place, and empty
/// strings and arrays are not written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entries(Vec<(String, Value<'static>)>);

impl Entries {
    /// No entries.
    pub fn new() -> Entries {
        Entries::default()
    }

    /// Sets a key; an existing key keeps its place.
    pub fn set(&mut self, key: impl Into<String>, value: Value<'static>) {
        let key = key.into();
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// Sets a key to a text, unless it is empty.
    pub fn set_str(&mut self, key: impl Into<String>, text: &str) {
        if !text.is_empty() {
            self.set(key, Value::str(text.to_owned()));
        }
    }

    /// Sets a key to an array of strings, unless it is empty.
    pub fn set_strings<S: AsRef<[u8]>>(
        &mut self,
        key: impl Into<String>,
        strings: impl IntoIterator<Item = S>,
    ) {
        self.set_array(key, Array::of_strings(strings));
    }

    /// Sets a key to an array of values of one type, unless it is empty.
    ///
    /// # Panics
    /// If a value is of another type than `element`.
    pub fn set_values(
        &mut self,
        key: impl Into<String>,
        element: ValueType,
        values: impl IntoIterator<Item = Value<'static>>,
    ) {
        self.set_array(key, Array::of_values(element, values));
    }

    fn set_array(&mut self, key: impl Into<String>, array: Array<'static>) {
        if !array.is_empty() {
            self.set(key, Value::Array(array));
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value<'static>> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value<'static>)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Adds all entries of `other`; existing keys keep their places.
    pub fn extend(&mut self, other: Entries) {
        other
            .0
            .into_iter()
            .for_each(|(key, value)| self.set(key, value));
    }
}

impl IntoIterator for Entries {
    type Item = (String, Value<'static>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_keys_keep_their_place_and_empty_values_are_omitted() {
        let mut entries = Entries::new();
        entries.set("a", Value::U32(1));
        entries.set_str("b", "");
        entries.set_strings("c", [] as [&str; 0]);
        entries.set_str("d", "x");
        entries.set("a", Value::Bool(true));
        let all: Vec<_> = entries.into_iter().collect();
        assert_eq!(
            all,
            [
                ("a".to_owned(), Value::Bool(true)),
                ("d".to_owned(), Value::str("x"))
            ]
        );
    }
}
