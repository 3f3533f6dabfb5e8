use super::{Choice, Grid, Metric, Pointed, Points, Stepped};
use crate::simd::Scalar;
use crate::{Block, fp4, iq, iq4, k, legacy, low, ternary};
use quantier_core::rng::Rng;

/// Pseudo-random bytes.
fn bytes(seed: u64) -> impl FnMut() -> u8 {
    let mut rng = Rng::new(seed);
    move || rng.next_u64() as u8
}

/// A random block without a fault.
fn any_block<B: Block<N>, const N: usize>(next: &mut impl FnMut() -> u8) -> B {
    loop {
        let mut block = B::zeroed();
        bytemuck::bytes_of_mut(&mut block)
            .iter_mut()
            .for_each(|byte| *byte = next());
        if block.fault().is_none() {
            return block;
        }
    }
}

fn weights<B: Block<N>, const N: usize>(block: &B) -> [f32; N] {
    let mut weights = [0.0; N];
    block.dequantize(Scalar, &mut weights);
    weights
}

fn near(a: f32, b: f32, size: f32) -> bool {
    a == b || (a - b).abs() <= 1e-5 * size.abs() + f32::MIN_POSITIVE
}

/// Levels and scales decode as specified, whatever the previous contents.
fn stepped<B: Stepped<N>, const N: usize>() {
    let mut next = bytes(7);
    for _ in 0..20 {
        let mut block: B = any_block(&mut next);
        let (top, table) = match B::GRID {
            Grid::Even { top } => (top, None),
            Grid::Table(table) => (15, Some(table)),
        };
        let mut levels = [0u8; N];
        levels
            .iter_mut()
            .for_each(|level| *level = (u16::from(next()) * (u16::from(top) + 1) / 256) as u8);
        let changes: Vec<_> = (0..N / B::SUB)
            .map(|_| B::TRIES[usize::from(next()) % B::TRIES.len()])
            .collect();
        let scales: Vec<_> = (0..N / B::SUB)
            .map(|sub| [block.step(sub), block.base(sub)])
            .collect();
        for (sub, change) in changes.iter().enumerate() {
            block.nudge(sub, *change);
            if *change == [0, 0] {
                assert_eq!(
                    [block.step(sub), block.base(sub)],
                    scales[sub],
                    "{}: no change",
                    B::TYPE
                );
            }
        }
        let written = match table {
            Some(table) => levels.map(|level| table.level(level)),
            None => levels,
        };
        block.set_levels(&written);
        for (i, w) in weights(&block).into_iter().enumerate() {
            let (step, base) = (block.step(i / B::SUB), block.base(i / B::SUB));
            let number = table.map_or(f32::from(levels[i]), |table| table.number(levels[i]));
            let size = (step * number).abs() + base.abs();
            assert!(
                near(w, base + step * number, size),
                "{}: weight {i} is {w}",
                B::TYPE
            );
        }
    }
}

#[test]
fn levels_decode_as_specified() {
    stepped::<legacy::BlockQ4_0, 32>();
    stepped::<legacy::BlockQ4_1, 32>();
    stepped::<legacy::BlockQ5_0, 32>();
    stepped::<legacy::BlockQ5_1, 32>();
    stepped::<legacy::BlockQ8_0, 32>();
    stepped::<low::BlockQ1_0, 128>();
    stepped::<low::BlockQ2_0, 64>();
    stepped::<ternary::BlockTq1_0, 256>();
    stepped::<ternary::BlockTq2_0, 256>();
    stepped::<fp4::BlockMxfp4, 32>();
    stepped::<fp4::BlockNvfp4, 64>();
    stepped::<iq4::BlockIq4Nl, 32>();
    stepped::<iq4::BlockIq4Xs, 256>();
    stepped::<k::BlockQ2K, 256>();
    stepped::<k::BlockQ3K, 256>();
    stepped::<k::BlockQ4K, 256>();
    stepped::<k::BlockQ5K, 256>();
    stepped::<k::BlockQ6K, 256>();
}

/// Points, signs, shifts and scales decode as specified.
fn pointed<B: Pointed>() {
    let mut next = bytes(11);
    for _ in 0..20 {
        let mut block: B = any_block(&mut next);
        let before: Vec<_> = (0..256 / B::SUB)
            .map(|sub| (block.scale(sub), block.down(sub)))
            .collect();
        let changes: Vec<_> = (0..256 / B::SUB)
            .map(|_| B::TRIES[usize::from(next()) % B::TRIES.len()])
            .collect();
        for (sub, change) in changes.iter().enumerate() {
            block.nudge(sub, *change);
            assert_eq!(
                block.down(sub) != before[sub].1,
                change[1] != 0,
                "{}: shift",
                B::TYPE
            );
            if change[0] == 0 {
                assert_eq!(block.scale(sub), before[sub].0, "{}: no change", B::TYPE);
            }
        }
        let mut choices = [Choice::default(); 32];
        for choice in &mut choices {
            let mut number =
                |count: usize| (u16::from(next()) << 8 | u16::from(next())) % count as u16;
            let count = match B::points() {
                Points::Eight(book) | Points::Shifted(book, _) => book.len(),
                Points::Four(book) => book.len(),
            };
            choice.points = [number(count), number(count)];
            choice.signs = number(256) as u8;
            if B::EVEN_SIGNS {
                let seven = choice.signs & 0x7f;
                choice.signs = seven | ((seven.count_ones() as u8 & 1) << 7);
            }
            choice.down = number(2) == 1;
        }
        block.set_choices(&choices);
        for (g, w) in weights(&block).as_chunks::<8>().0.iter().enumerate() {
            let sub = g * 8 / B::SUB;
            let scale = block.scale(sub);
            let choice = &choices[g];
            let mut values = match B::points() {
                Points::Eight(book) => book.point(choice.points[0]),
                Points::Four(book) => bytemuck::cast(choice.points.map(|p| book.point(p))),
                Points::Shifted(book, shift) => {
                    let down = if B::SHIFTS_GROUPS {
                        choice.down
                    } else {
                        block.down(sub)
                    };
                    book.point(choice.points[0])
                        .map(|v| if down { v - shift } else { v + shift })
                }
            };
            if !matches!(B::points(), Points::Shifted(..)) {
                for (i, v) in values.iter_mut().enumerate() {
                    *v = if choice.signs >> i & 1 == 1 { -*v } else { *v };
                }
            }
            for i in 0..8 {
                assert!(
                    near(w[i], scale * values[i], scale * values[i]),
                    "{}: group {g} is {w:?}",
                    B::TYPE
                );
            }
        }
    }
}

#[test]
fn points_decode_as_specified() {
    pointed::<iq::BlockIq1S>();
    pointed::<iq::BlockIq1M>();
    pointed::<iq::BlockIq2Xxs>();
    pointed::<iq::BlockIq2Xs>();
    pointed::<iq::BlockIq2S>();
    pointed::<iq::BlockIq3Xxs>();
    pointed::<iq::BlockIq3S>();
}

#[test]
fn group_metric_equals_sequential_costs() {
    let coupling: [[f32; 8]; 8] =
        std::array::from_fn(|j| std::array::from_fn(|k| ((j * 5 + k * 3) % 7) as f32 / 9.0));
    let costs: [f32; 8] = std::array::from_fn(|j| 1.0 + j as f32 / 3.0);
    let metric = Metric::new(std::array::from_fn(|j| &coupling[j][..]), &costs);
    let errors: [f32; 8] = std::array::from_fn(|i| (i as f32 - 3.3) / 2.0);
    let in_turn = |count: usize| {
        let (mut open, mut cost) = (errors, 0.0);
        for j in 0..count {
            cost += costs[j] * open[j] * open[j];
            for k in j + 1..8 {
                open[k] -= coupling[j][k] * open[j];
            }
        }
        cost
    };
    let form = |m: &dyn Fn(usize, usize) -> f32, count: usize| -> f32 {
        (0..count * count)
            .map(|i| errors[i / count] * m(i / count, i % count) * errors[i % count])
            .sum()
    };
    assert!((form(&|i, j| metric.eight[i][j], 8) / in_turn(8) - 1.0).abs() < 1e-4);
    assert!((form(&|i, j| metric.first_four[i][j], 4) / in_turn(4) - 1.0).abs() < 1e-4);
}

/// A metric from a Hessian is that from its factors; `solve` inverts it.
#[test]
fn metrics_of_hessians_and_of_factors_agree() {
    let mut rng = Rng::new(4);
    let coupling: [[f32; 8]; 8] = std::array::from_fn(|_| std::array::from_fn(|_| rng.centered()));
    let costs: [f32; 8] = std::array::from_fn(|_| rng.centered() + 0.7);
    let of_factors = Metric::new(std::array::from_fn(|j| &coupling[j][..]), &costs);
    let of_hessian = Metric::of_hessian(of_factors.eight);
    for (a, b) in
        (of_factors.first_four.iter().flatten()).zip(of_hessian.first_four.iter().flatten())
    {
        assert!((a - b).abs() < 1e-4, "{a}, {b}");
    }
    let x: [f32; 8] = std::array::from_fn(|_| rng.centered());
    let slopes = of_hessian
        .eight
        .map(|row| row.iter().zip(&x).map(|(m, x)| m * x).sum());
    let found = of_hessian.solve(&slopes);
    assert!(
        found.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-3),
        "{found:?}, {x:?}"
    );
}
