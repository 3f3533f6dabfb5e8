//! Generated texts.

use quantier_core::rng::Rng;

/// Sentences of at least `bytes` bytes.
pub fn prose(bytes: usize) -> String {
    const WORDS: [&str; 32] = [
        "the", "a", "river", "mill", "stone", "old", "slowly", "turned", "under", "bridge", "and",
        "miller", "carried", "flour", "to", "market", "every", "morning", "when", "rain", "fell",
        "nobody", "came", "so", "bread", "was", "late", "again", "town", "of", "in", "small",
    ];
    let mut rng = Rng::new(11);
    let mut text = String::new();
    while text.len() < bytes {
        for i in 0..9 {
            text.push_str(if i == 0 { "" } else { " " });
            text.push_str(WORDS[(rng.uniform() * WORDS.len() as f32) as usize % WORDS.len()]);
        }
        text.push_str(".\n");
    }
    text
}

/// Lines of sums, at least `bytes` bytes.
pub fn numbers(bytes: usize) -> String {
    let mut rng = Rng::new(12);
    let mut text = String::new();
    while text.len() < bytes {
        let [a, b] = [rng.uniform(), rng.uniform()].map(|x| (x * 500.0) as u32);
        text.push_str(&format!("let sum = {a} + {b}; // {}\n", a + b));
    }
    text
}

/// Pseudo-random tokens of a vocabulary of 4096.
pub fn tokens(count: usize) -> Vec<u32> {
    let mut rng = Rng::new(7);
    (0..count).map(|_| rng.below(4096) as u32).collect()
}
