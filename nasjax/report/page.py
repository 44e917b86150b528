"""Skeleton and looks of the web page."""

STYLE = """\
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5d6b79; --grid: #dfe5ec;
  --paper: #ffffff; --back: #f4f6f8; --mark: #fdf1e7; --accent: #b8460a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --muted: #9fb0c0; --grid: #33404d; --paper: #1a222b; --back: #11171d;
    --mark: #33261b; --accent: #f2924f; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 20px 60px; }
.over { margin: 0; color: var(--accent); font-weight: 600; letter-spacing: .02em; }
h1 { margin: 6px 0 20px; text-wrap: balance; font-size: 28px; line-height: 1.3; font-weight: 650; }
h2 { margin: 0 0 14px; font-size: 19px; font-weight: 650; }
section { margin-top: 20px; padding: 22px 24px; background: var(--paper);
  border: 1px solid var(--grid); border-radius: 10px; overflow-x: auto; }
dl { display: flex; flex-wrap: wrap; gap: 12px 40px; margin: 0; }
dt { color: var(--muted); font-size: 14px; }
dd { margin: 0; font-weight: 600; font-size: 17px; }
sup { line-height: 0; }
.whole { white-space: nowrap; }
.notes { margin: 18px 0 0; padding: 10px 14px 10px 32px; background: var(--mark);
  border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px; border-bottom: 1px solid var(--grid); text-align: right; }
th:first-child { text-align: left; }
thead th { color: var(--muted); font-size: 14px; font-weight: 600; }
tbody th { font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
tr.found > * { background: var(--mark); font-weight: 650; }
td small { color: var(--muted); font-weight: 400; font-size: 14px; }
figure { margin: 0; }
svg { display: block; width: 100%; min-width: 860px; height: auto; }
figcaption, .hint { margin: 12px 0 0; max-width: 60em; color: var(--muted); font-size: 14px; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: 13px/1.5 ui-monospace, Consolas, Menlo, monospace; }
footer { margin-top: 24px; color: var(--muted); font-size: 14px; }
"""

TABLE_HINT = """\
<p class="hint">Accuracy on the test examples. Inherited: with the super-network's weights as they
are. Fine-tuned: after some more training of these weights. Retrained: trained from scratch.</p>
"""

ORACLE = """\
<section><h2>The truth</h2>
<p>{text}</p>
{figure}
</section>
"""

SECTION = """\
<section><h2>{title}</h2>
{figure}
</section>
"""

BODY = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<p class="over">{title}</p>
<h1>{headline}</h1>
{facts}
{notes}
<section><h2>Results</h2>
{table}
</section>
<section><h2>The network</h2>
{architecture}
</section>
<section><h2>Accuracy and size</h2>
{size}
</section>
{oracle}{second}{mixture}<section><h2>Training</h2>
{training}
</section>
<section><h2>Settings</h2>
{config}
</section>
<footer>Run {run} · {versions}</footer>
</main>
</body>
</html>
"""
