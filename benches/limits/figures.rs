//! What was measured, and what had to come out.

/// What a figure has to be.
#[derive(Clone, Copy)]
pub(crate) enum Must {
    AtLeast(f64),
    AtMost(f64),
    /// It only stands beside the others.
    Say,
}

impl Must {
    pub(crate) fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(bound) => figure >= bound,
            Self::AtMost(bound) => figure <= bound,
            Self::Say => true,
        }
    }
}

/// One figure of a row, once a round.
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) must: Must,
    pub(crate) rounds: Vec<f64>,
}

impl Figure {
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        sorted[sorted.len() / 2]
    }

    pub(crate) fn range(&self) -> (f64, f64) {
        let sorted = self.sorted();
        (sorted[0], sorted[sorted.len() - 1])
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// The figures of a row.
#[derive(Default)]
pub(crate) struct Figures(pub(crate) Vec<Figure>);

impl Figures {
    /// Adds what a round measured.
    pub(crate) fn add(&mut self, what: &'static str, unit: &'static str, must: Must, value: f64) {
        let known = self.0.iter_mut().find(|figure| figure.what == what);
        match known {
            Some(figure) => {
                assert_eq!(figure.unit, unit, "{what}: one figure has one unit");
                figure.rounds.push(value);
            }
            None => self.0.push(Figure {
                what,
                unit,
                must,
                rounds: vec![value],
            }),
        }
    }
}
