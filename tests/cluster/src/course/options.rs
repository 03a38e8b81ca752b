//! The command line of `cargo xtask bench services`.

use anyhow::{Context, Result, bail};

use super::contender::Contender;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Numbers of Services, growing: those of the one before are kept.
    pub sizes: Vec<usize>,
    /// Endpoints of a Service.
    pub endpoints: usize,
    /// Changes that are timed, alone and again while others go on.
    pub samples: usize,
    /// Who is measured.
    pub contenders: Vec<Contender>,
    /// Print JSON in place of the table.
    pub json: bool,
}

impl Options {
    /// Reads the arguments, without the program's name.
    ///
    /// # Errors
    /// Names the one that is not known or has no value.
    pub fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options {
            sizes: vec![1000, 5000],
            endpoints: 10,
            samples: 20,
            contenders: Contender::ALL.to_vec(),
            json: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--json" => options.json = true,
                "--quick" => (options.sizes, options.samples) = (vec![1000], 10),
                "--sizes" => options.sizes = list(value()?, |word| number(word, 50_000))?,
                "--endpoints" => options.endpoints = number(value()?, 100)?,
                "--samples" => options.samples = number(value()?, 1000)?,
                "--contenders" => options.contenders = list(value()?, str::parse)?,
                _ => bail!("unknown argument {word}"),
            }
        }
        Ok(options)
    }
}

fn list<T>(text: &str, read: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    text.split(',').map(|word| read(word.trim())).collect()
}

fn number(text: &str, most: usize) -> Result<usize> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.with_context(|| format!("{text} is no number from 1 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options> {
        Options::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn sizes_and_contenders_can_be_chosen() {
        let options = parse("--sizes 10,20 --contenders netd-nft,kube-proxy-nft --samples 3 --json").unwrap();
        assert_eq!((options.sizes, options.contenders.len()), (vec![10, 20], 2));
        assert!(parse("--sizes 0").is_err());
        assert!(parse("--contenders cilium").is_err());
        assert!(parse("--samples").is_err());
    }
}
