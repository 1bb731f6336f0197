"""How the report looks, in light and in dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1b1f24; --soft: #5d6670; --line: #e4e4df;
  --track: #eeeeea; --integer: #0f766e; --float: #d97706; --time: #64748b;
  --good: #0f766e; --fair: #a15c07; --bad: #b42318; --tint: #fdf0ee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121417; --card: #1a1d21; --ink: #e8eaed; --soft: #9aa4af; --line: #2c3137;
    --track: #25292e; --integer: #2dd4bf; --float: #f59e0b; --time: #8695a8;
    --good: #2dd4bf; --fair: #f5b14c; --bad: #f97066; --tint: #2e1d1c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 64px; }
header { border-left: 4px solid var(--status); padding: 2px 0 2px 20px; margin-bottom: 32px; }
header.exact { --status: var(--good); }
header.bounded { --status: var(--fair); }
header.failed { --status: var(--bad); }
header.not-verified { --status: var(--soft); }
header p { margin: 0; max-width: 80ch; }
header .over { color: var(--soft); font-size: 13px; }
header .cause { margin-top: 8px; color: var(--bad); }
h1 { margin: 2px 0 4px; color: var(--status); font-size: 34px; line-height: 1.2; }
.tiles {
  display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr));
  margin: 0 0 36px;
}
.tiles > div, section > .card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.tiles > div { padding: 14px 18px 12px; }
.tiles dt { color: var(--soft); font-size: 13px; }
.tiles dd { margin: 0; font-size: 26px; line-height: 1.35; font-weight: 600; }
.tiles dd + dd { color: var(--soft); font-size: 13px; font-weight: 400; }
section { margin: 0 0 36px; }
h2 { margin: 0 0 4px; font-size: 18px; font-weight: 650; }
section > p { margin: 0 0 12px; color: var(--soft); max-width: 80ch; }
section > .card { overflow-x: auto; margin-top: 10px; }
.pair {
  display: grid; gap: 0 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
}
.chart { display: block; width: 100%; height: auto; padding: 12px 16px; font-size: 13px; }
.chart text { fill: var(--ink); dominant-baseline: central; }
.chart .value { fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .track { fill: var(--track); }
.chart .integer { fill: var(--integer); }
.chart .float { fill: var(--float); }
.chart .time { fill: var(--time); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0; color: var(--soft); }
.legend i {
  display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px;
}
.legend .integer { background: var(--integer); }
.legend .float { background: var(--float); }
table { width: 100%; border-collapse: collapse; font-size: 13.5px; }
th, td { padding: 7px 12px; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
tr + tr td, thead + tbody td { border-top: 1px solid var(--line); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
td code { overflow-wrap: break-word; }
td:first-child:has(code) { min-width: 220px; }
.differs td { background: var(--tint); }
.aside td { color: var(--soft); }
footer {
  color: var(--soft); font-size: 13px; border-top: 1px solid var(--line); padding-top: 16px;
}
@media print { main { max-width: none; padding: 0; } section > .card { overflow: visible; } }
"""
