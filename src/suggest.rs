//! Suggestions: "did you mean ...?"

/// Returns the names similar to `wanted`, most similar first.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(f64, &str)> = names
        .map(|name| {
            let lower = name.to_lowercase();
            let tail = |text: &str| text.rsplit('/').next().unwrap_or_default().to_string();
            let score = strsim::jaro_winkler(&wanted, &lower).max(strsim::jaro_winkler(&tail(&wanted), &tail(&lower)));
            (score, name)
        })
        .filter(|(score, _)| *score > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().map(|(_, name)| name)
}

/// Returns the question "did you mean ...?" with up to three similar names, or `None` if no name is similar.
pub fn did_you_mean<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let close: Vec<&str> = nearest(wanted, names).take(3).collect();
    (!close.is_empty()).then(|| format!("did you mean {}?", close.join(", ")))
}
