"""How does the page look? Its style sheet: plain, readable in light and in dark."""

CSS = """\
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1f2328; --muted: #656d76; --rule: #d9dee3; --wash: #f3f5f7;
  --accent: #2f6db4; --measured: #b32a7e; --good: #1a7f42; --bad: #c0392b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e3e7eb; --muted: #98a2ab; --rule: #2f363c; --wash: #1c2125;
    --accent: #6ba4e0; --measured: #e671b8; --good: #58c283; --bad: #ee7d6f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto;
  padding: 2.5rem 1.25rem 4rem;
  max-width: 54rem;
  background: var(--paper);
  color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 {
  font-size: 1.15rem;
  margin: 2.6rem 0 .5rem;
  padding-top: .9rem;
  border-top: 1px solid var(--rule);
}
p { margin: .5rem 0; max-width: 46rem; }
.lead { color: var(--muted); }
nav { margin: 1rem 0 0; font-size: .9rem; }
nav a { color: var(--accent); text-decoration: none; margin-right: 1rem; white-space: nowrap; }
figure { margin: 1rem 0 .5rem; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit; }
figcaption, .note { color: var(--muted); font-size: .88rem; max-width: 46rem; }
.cards {
  display: grid;
  grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr));
  gap: .75rem;
  margin: 1.4rem 0 .5rem;
}
.card { background: var(--wash); border-radius: .5rem; padding: .8rem 1rem; }
.card b {
  display: block;
  font-size: 1.35rem;
  font-weight: 600;
  font-variant-numeric: tabular-nums;
}
.card span { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse;
  min-width: min(100%, 34rem);
  margin: .8rem 0;
  font-size: .88rem;
  font-variant-numeric: tabular-nums;
}
th {
  text-align: left;
  color: var(--muted);
  font-weight: 500;
  border-bottom: 1px solid var(--rule);
}
th, td { padding: .3rem 1.4rem .3rem 0; vertical-align: top; }
td code { white-space: nowrap; }
table.pairs td:first-child { width: 15rem; color: var(--muted); }
table.pairs code { white-space: normal; }
td.n, th.n { text-align: right; white-space: nowrap; }
tbody tr + tr td { border-top: 1px solid color-mix(in srgb, var(--rule) 55%, transparent); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.out td { color: var(--muted); }
ul.warn { padding-left: 1.1rem; color: var(--bad); }
code {
  font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere;
}
"""
