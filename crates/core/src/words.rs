//! Formatting for messages: sizes, lists of names, edit distance.

/// A size in binary units: `4.33 GiB`.
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let unit = Unit::of(bytes);
    format!("{:.2} {}", bytes as f64 / unit.bytes(), unit.name())
}

/// A binary unit of size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit(u32);

impl Unit {
    /// The largest unit, from KiB on, that is not larger than `bytes`.
    pub fn of(bytes: u64) -> Unit {
        Unit((bytes.max(1).ilog2() / 10).clamp(1, 5))
    }

    /// Size of the unit in bytes.
    pub fn bytes(self) -> f64 {
        1024_f64.powi(self.0 as i32)
    }

    /// Name of the unit.
    pub fn name(self) -> &'static str {
        ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][self.0 as usize]
    }
}

/// Names separated by commas; those beyond `most` are counted.
pub fn listed(names: &[&str], most: usize) -> String {
    let named = names[..names.len().min(most)].join(", ");
    match names.len().saturating_sub(most) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Edit distance of two words (Levenshtein 1965), in letters.
pub fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed(&["a", "b"], 2), "a, b");
        assert_eq!(listed(&["a", "b", "c", "d"], 2), "a, b and 2 more");
        assert_eq!(listed(&[], 2), "");
    }

    #[test]
    fn edit_distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
