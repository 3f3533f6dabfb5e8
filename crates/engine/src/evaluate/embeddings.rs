//! Embedding models: cosine distances of a model's embeddings from its base's, and the agreement of both on which
//! texts are similar.
//!
//! ```text
//! embeddings   runs a model over texts, each alone: unit vectors
//! distances    1 - cos of both models' embeddings of a text; a mean over tokens if the model has no pooling
//! Distances    mean, standard error over texts, spread
//! Agreement    rank correlation of the similarities of all pairs of texts; shared nearest neighbours
//! ```

use super::measure::Error;
use super::statistics::{Figure, Spread, mean, sorted};
use crate::model::{Engine, Rows};
use quantier_core::progress::Progress;
use serde::{Deserialize, Serialize};

/// Result of this module.
type Result<T> = std::result::Result<T, Error>;

/// Embeddings of a text: one, or one for each token of a model without a pooling. `[count, width]`, each of length 1.
pub type Embedding = Rows;

/// Number of nearest neighbours that are compared.
pub const NEIGHBOURS: usize = 10;
/// Most texts whose pairs are compared: half a million pairs.
const MOST: usize = 1000;
/// Percentiles of the distance that are reported beside the extremes.
const PERCENTILES: [f64; 5] = [99.0, 90.0, 50.0, 10.0, 1.0];

/// Runs a model over texts, each with attention within it alone. `name` identifies the model in errors.
///
/// # Errors
/// Those of [`Engine::run_each`], with the model's name; an embedding that is zero or not finite.
pub fn embeddings(
    name: &str,
    engine: &Engine<'_>,
    texts: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<Vec<Embedding>> {
    let failed = |error| Error::Model {
        model: name.to_owned(),
        error,
    };
    let pooler = engine.pooler().map_err(failed)?;
    let all: Vec<_> = texts.iter().map(|text| 0..text.len()).collect();
    let hidden = engine
        .run_each(texts, &all, None, progress)
        .map_err(failed)?;
    let one = |text: usize| {
        let rows = hidden.take(text).map_err(failed)?;
        pooler.embed(&rows).ok_or_else(|| Error::Embedding {
            model: name.to_owned(),
            text,
        })
    };
    engine
        .pool()
        .install(|| (0..texts.len()).map(one).collect())
}

/// 1 - cos of two models' embeddings of the same texts, by text.
///
/// # Errors
/// Embeddings of other lengths, or another number of them. `names` are those of the models.
pub fn distances(base: &[Embedding], other: &[Embedding], names: [&str; 2]) -> Result<Vec<f64>> {
    let shape = |texts: &[Embedding]| {
        texts
            .first()
            .map_or([0, 0], |rows| [texts.len(), rows.columns()])
    };
    let pairs = base.iter().zip(other);
    let are_alike = shape(base) == shape(other)
        && pairs
            .clone()
            .all(|(a, b)| (a.len(), a.columns()) == (b.len(), b.columns()));
    if !are_alike {
        let [base, other] = names.map(str::to_owned);
        return Err(Error::Embeddings { base, other });
    }
    let of_text = |(a, b): (&Embedding, &Embedding)| {
        let sum: f64 = a.iter().zip(b.iter()).map(|(a, b)| distance(a, b)).sum();
        sum / a.len().max(1) as f64
    };
    Ok(pairs.map(of_text).collect())
}

/// 1 - cos of two unit vectors: half the squared difference, which keeps small distances exact.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    let squares = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    squares.sum::<f64>() / 2.0
}

/// Statistics of the cosine distances of a model's embeddings from its base's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distances {
    /// Texts compared.
    pub texts: usize,
    /// Mean over texts.
    pub mean: Figure,
    /// Distribution over texts.
    pub spread: Spread,
}

impl Distances {
    /// From the distances of all texts. None without texts.
    pub fn of(distances: &[f64]) -> Option<Distances> {
        (!distances.is_empty()).then(|| Distances {
            texts: distances.len(),
            mean: mean(distances.iter().copied()),
            spread: Spread::of(&sorted(distances.iter().copied()), &PERCENTILES),
        })
    }
}

/// Agreement of two models on which texts are similar.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Spearman's rank correlation of the cosine similarities of all pairs of texts; None if all pairs are alike.
    pub rank_correlation: Option<f64>,
    /// Mean share of a text's nearest neighbours that are its nearest ones in both models.
    pub shared_neighbours: f64,
    /// Number of nearest neighbours of a text.
    pub neighbours: usize,
    /// Texts compared: the first thousand, of more.
    pub texts: usize,
}

impl Agreement {
    /// From two models' embeddings of the same texts. None with fewer than three texts: two have one pair.
    pub fn of(base: &[Embedding], other: &[Embedding]) -> Option<Agreement> {
        const FEWEST: usize = 3;
        let texts = base.len().min(other.len()).min(MOST);
        if texts < FEWEST {
            return None;
        }
        let [a, b] = [base, other].map(|all| similarities(&all[..texts]));
        let above = |all: &[f64]| -> Vec<f64> {
            let rows = all.chunks_exact(texts).enumerate();
            rows.flat_map(|(row, all)| all[row + 1..].to_vec())
                .collect()
        };
        let neighbours = NEIGHBOURS.min(texts - 1);
        let shared = (0..texts).map(|text| {
            let [a, b] =
                [&a, &b].map(|all| nearest(&all[text * texts..][..texts], text, neighbours));
            a.iter().filter(|other| b.contains(other)).count()
        });
        Some(Agreement {
            rank_correlation: rank_correlation(&above(&a), &above(&b)),
            shared_neighbours: shared.sum::<usize>() as f64 / (texts * neighbours) as f64,
            neighbours,
            texts,
        })
    }
}

/// Cosine similarities of all texts with all: `[texts, texts]`. Of several embeddings of a text, their mean counts.
fn similarities(texts: &[Embedding]) -> Vec<f64> {
    let means: Vec<Vec<f64>> = texts.iter().map(direction).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let rows = means.iter().flat_map(|a| means.iter().map(|b| dot(a, b)));
    rows.collect()
}

/// The direction of the mean of a text's embeddings; zero if they cancel.
fn direction(embedding: &Embedding) -> Vec<f64> {
    let mut sum = vec![0.0f64; embedding.columns()];
    for row in embedding.iter() {
        let pairs = sum.iter_mut().zip(row);
        pairs.for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    sum.iter_mut().for_each(|x| *x *= scale);
    sum
}

/// The texts with the largest similarities, except `text` itself; of equals the first.
fn nearest(similarities: &[f64], text: usize, count: usize) -> Vec<usize> {
    let mut others: Vec<usize> = (0..similarities.len()).filter(|i| *i != text).collect();
    others.sort_by(|a, b| similarities[*b].total_cmp(&similarities[*a]));
    others.truncate(count);
    others
}

/// Ranks of numbers, counted from 0; equals have their mean rank.
fn ranks(numbers: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
    let mut ranks = vec![0.0; numbers.len()];
    let mut first = 0;
    for equals in order.chunk_by(|a, b| numbers[*a] == numbers[*b]) {
        let rank = first as f64 + (equals.len() - 1) as f64 / 2.0;
        equals.iter().for_each(|i| ranks[*i] = rank);
        first += equals.len();
    }
    ranks
}

/// Spearman's rank correlation; None if one list is constant.
fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let [a, b] = [a, b].map(ranks);
    let middle = (a.len() as f64 - 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| (a - middle) * (b - middle)).sum::<f64>()
    };
    let squares = (product(&a, &a) * product(&b, &b)).sqrt();
    (squares > 0.0).then(|| product(&a, &b) / squares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quantier_core::rng::Rng;

    fn unit(mut numbers: Vec<f32>) -> Embedding {
        let length = numbers.iter().map(|x| x * x).sum::<f32>().sqrt();
        numbers.iter_mut().for_each(|x| *x /= length);
        let columns = numbers.len();
        Rows::new(numbers, columns)
    }

    fn random(texts: usize, noise: f32) -> [Vec<Embedding>; 2] {
        let mut rng = Rng::new(3);
        let mut both = [Vec::new(), Vec::new()];
        for _ in 0..texts {
            let base: Vec<f32> = (0..16).map(|_| rng.gaussian()).collect();
            let other = base.iter().map(|x| x + noise * rng.gaussian());
            both[1].push(unit(other.collect()));
            both[0].push(unit(base));
        }
        both
    }

    #[test]
    fn distances_are_one_minus_the_cosine() {
        let base = [unit(vec![1.0, 0.0]), unit(vec![0.0, 2.0])];
        let other = [unit(vec![1.0, 1.0]), unit(vec![0.0, -3.0])];
        let found = distances(&base, &other, ["a", "b"]).unwrap();
        assert!((found[0] - (1.0 - 0.5f64.sqrt())).abs() < 1e-7);
        assert!((found[1] - 2.0).abs() < 1e-12);
        assert_eq!(distances(&base, &base, ["a", "b"]).unwrap(), [0.0, 0.0]);
        let narrow = [unit(vec![1.0]), unit(vec![1.0])];
        let error = distances(&base, &narrow, ["one.gguf", "two.gguf"]).unwrap_err();
        assert!(error.to_string().contains("two.gguf"), "{error}");
        // Tokens of a text count as a mean.
        let tokens = [Rows::new(vec![1.0, 0.0, 0.0, 1.0], 2)];
        let turned = [Rows::new(vec![1.0, 0.0, 0.0, -1.0], 2)];
        assert_eq!(distances(&tokens, &turned, ["a", "b"]).unwrap(), [1.0]);
    }

    #[test]
    fn agreement_falls_with_noise() {
        let of = |noise: f32| {
            let [base, other] = random(60, noise);
            Agreement::of(&base, &other).unwrap()
        };
        let same = of(0.0);
        assert_eq!((same.texts, same.neighbours), (60, NEIGHBOURS));
        assert!((same.rank_correlation.unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(same.shared_neighbours, 1.0);
        let [little, much] = [of(0.1), of(1.0)];
        assert!(little.rank_correlation > much.rank_correlation);
        assert!(little.shared_neighbours > much.shared_neighbours && much.shared_neighbours < 0.8);
        let [few, _] = random(2, 0.0);
        assert_eq!(Agreement::of(&few, &few), None);
    }

    #[test]
    fn equal_numbers_share_a_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
        let reversed = rank_correlation(&[1.0, 2.0, 3.0], &[9.0, 5.0, 1.0]);
        assert_eq!(reversed, Some(-1.0));
    }
}
