//! Cuts special tokens out of a text, before pre-tokenization.
//!
//! The reference searches the text for each token in turn, longest first. Few of them occur in a
//! text: one combined search finds these, and only they are searched in that order.

use super::vocab::{CONTROL, UNKNOWN, USER_DEFINED, Vocab};
use aho_corasick::AhoCorasick;
use std::ops::Range;

/// A part of a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fragment {
    /// A special token.
    Token(u32),
    /// Bytes of the text.
    Text(Range<usize>),
}

/// The special tokens of a vocabulary.
pub(crate) struct Special {
    /// By descending length, then by id.
    ids: Vec<u32>,
    search: Option<AhoCorasick>,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 9..=13)
}

impl Special {
    /// Collects the special tokens of a vocabulary.
    pub(crate) fn of(vocab: &Vocab) -> Special {
        let text = |id: u32| &vocab.tokens[id as usize].text;
        let is_special =
            |&id: &u32| vocab.tokens[id as usize].role & (CONTROL | USER_DEFINED | UNKNOWN) != 0;
        let mut ids: Vec<u32> = (0..vocab.tokens.len() as u32).filter(is_special).collect();
        ids.sort_by_key(|&id| std::cmp::Reverse(text(id).len()));
        let search = if ids.is_empty() {
            None
        } else {
            AhoCorasick::new(ids.iter().map(|&id| text(id))).ok()
        };
        Special { ids, search }
    }

    /// Cuts a text. Without `parse`, only user-defined tokens are cut out.
    pub(crate) fn cut(&self, vocab: &Vocab, text: &str, parse: bool) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(0..text.len()));
        }
        let Some(search) = &self.search else {
            return fragments;
        };
        let mut there = vec![false; self.ids.len()];
        search
            .find_overlapping_iter(text)
            .for_each(|m| there[m.pattern().as_usize()] = true);
        for (&id, _) in self.ids.iter().zip(there).filter(|(_, there)| *there) {
            if parse || vocab.tokens[id as usize].role & (CONTROL | UNKNOWN) == 0 {
                fragments = cut_out(vocab, text, id, fragments);
            }
        }
        fragments
    }
}

fn cut_out(vocab: &Vocab, text: &str, id: u32, fragments: Vec<Fragment>) -> Vec<Fragment> {
    let token = &vocab.tokens[id as usize];
    let finder = memchr::memmem::Finder::new(&token.text);
    let bytes = text.as_bytes();
    let mut cut = Vec::with_capacity(fragments.len());
    for fragment in fragments {
        let Fragment::Text(Range { mut start, end }) = fragment else {
            cut.push(fragment);
            continue;
        };
        while let Some(found) = finder.find(&bytes[start..end]) {
            let at = start + found;
            let mut left = at;
            while token.strips_left && left > start && is_space(bytes[left - 1]) {
                left -= 1;
            }
            if left > start {
                cut.push(Fragment::Text(start..left));
            }
            cut.push(Fragment::Token(id));
            start = at + token.text.len();
            while token.strips_right && start < end && is_space(bytes[start]) {
                start += 1;
            }
        }
        if start < end {
            cut.push(Fragment::Text(start..end));
        }
    }
    cut
}
