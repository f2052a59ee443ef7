//! Measuring in turns: A B C, A B C, …, so that what changes on the machine changes for all.

use std::fmt::Display;

use super::report::{Row, State};

/// Takes one round's figures, in the order of the question's columns.
type Measure<'a> = Box<dyn FnMut() -> anyhow::Result<Vec<f64>> + 'a>;

/// Something to be measured, or the reason why it cannot be.
pub(crate) struct Contender<'a> {
    label: String,
    measure: Result<Measure<'a>, String>,
}

impl<'a> Contender<'a> {
    /// One that can be measured.
    pub(crate) fn new(
        label: impl Into<String>,
        measure: impl FnMut() -> anyhow::Result<Vec<f64>> + 'a,
    ) -> Self {
        Self { label: label.into(), measure: Ok(Box::new(measure)) }
    }

    /// One that is missing.
    pub(crate) fn skipped(label: impl Into<String>, reason: impl Display) -> Self {
        Self { label: label.into(), measure: Err(format!("{reason:#}")) }
    }
}

/// Measures all contenders `rounds` times in turns. One that fails is not measured again.
pub(crate) fn interleave(rounds: usize, mut contenders: Vec<Contender<'_>>) -> Vec<Row> {
    let mut rows: Vec<Row> = contenders
        .iter()
        .map(|contender| Row {
            label: contender.label.clone(),
            state: match &contender.measure {
                Ok(_) => State::Measured(Vec::with_capacity(rounds)),
                Err(reason) => State::Skipped(reason.clone()),
            },
        })
        .collect();
    for _ in 0..rounds {
        for (contender, row) in contenders.iter_mut().zip(&mut rows) {
            let (Ok(measure), State::Measured(figures)) = (&mut contender.measure, &mut row.state)
            else {
                continue;
            };
            match measure() {
                Ok(round) => figures.push(round),
                Err(error) => row.state = State::Failed(format!("{error:#}")),
            }
        }
    }
    rows
}

/// The middle of some figures, the mean of the two middle ones for an even count; `None` of none.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The smallest figure that is not below this share of all of them; not a number of none.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share between 0 and 1 of a few hundred"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn contenders_take_turns_and_a_failed_one_drops_out() {
        let calls = RefCell::new(String::new());
        let turn = |name: char, fails: bool| {
            let calls = &calls;
            Contender::new(name, move || {
                calls.borrow_mut().push(name);
                anyhow::ensure!(!fails, "broke");
                Ok(vec![1.0])
            })
        };
        let contenders = vec![
            turn('a', false),
            turn('b', true),
            Contender::skipped('c', "absent"),
            turn('d', false),
        ];
        let states: Vec<_> = interleave(3, contenders).into_iter().map(|row| row.state).collect();
        assert_eq!(calls.into_inner(), "abdadad");
        assert_eq!(
            states,
            [
                State::Measured(vec![vec![1.0]; 3]),
                State::Failed("broke".to_owned()),
                State::Skipped("absent".to_owned()),
                State::Measured(vec![vec![1.0]; 3]),
            ]
        );
    }

    #[test]
    fn a_quantile_is_one_of_the_figures() {
        let figures = [1.0, 2.0, 3.0, 4.0];
        for (share, expected) in [(0.0, 1.0), (0.25, 1.0), (0.26, 2.0), (0.99, 4.0), (1.0, 4.0)] {
            assert_eq!(quantile(&figures, share), expected, "{share}");
        }
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_median_is_the_middle() {
        for (figures, expected) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![4.0, 1.0, 2.0, 100.0], Some(3.0)),
        ] {
            assert_eq!(median(figures.clone()), expected, "{figures:?}");
        }
    }
}
