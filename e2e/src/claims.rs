//! What a demo claims: checked when it is printed, and listed again at the end.

use anyhow::{Result, bail};

/// Says what is done or seen.
pub fn tell(words: &str) {
    for line in words.lines() {
        println!("    {line}");
    }
}

/// The claims that have held so far, with the facts they rest on.
#[derive(Debug, Default)]
pub struct Claims {
    steps: u32,
    held: Vec<(u32, String, String)>,
}

impl Claims {
    /// Begins a step.
    pub fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{:>2}. {title}", self.steps);
    }

    /// Notes that a claim holds, on the ground of `fact`; an error if it does not.
    pub fn check(&mut self, claim: &str, holds: bool, fact: impl Into<String>) -> Result<()> {
        let fact = fact.into();
        if !holds {
            println!("  ✗ {claim}: {fact}");
            bail!("step {}: the claim {claim:?} does not hold: {fact}", self.steps);
        }
        println!("  ✓ {claim}: {fact}");
        self.held.push((self.steps, claim.to_owned(), fact));
        Ok(())
    }

    /// All claims with their facts.
    pub fn table(&self) -> String {
        let width = self.held.iter().map(|(_, claim, _)| claim.chars().count()).max().unwrap_or(0);
        let row =
            |(step, claim, fact): &(u32, String, String)| format!("{step:>4}  {claim:<width$}  ✓ {fact}\n");
        format!("step  {:<width$}  measured\n", "claim") + &self.held.iter().map(row).collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_claims_with_their_steps_and_facts() {
        let mut claims = Claims::default();
        claims.step("one");
        claims.check("a", true, "1 of 1").unwrap();
        claims.step("two");
        claims.check("longer", true, "2 of 2").unwrap();
        let expected = "step  claim   measured\n   1  a       ✓ 1 of 1\n   2  longer  ✓ 2 of 2\n";
        assert_eq!(claims.table(), expected);
    }

    #[test]
    fn a_claim_that_does_not_hold_is_an_error_with_its_fact() {
        let error = Claims::default().check("none lost", false, "3 lost").unwrap_err().to_string();
        assert!(error.contains("none lost") && error.contains("3 lost"), "{error}");
    }
}
