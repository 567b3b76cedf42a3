"""The report's style sheet: for light and dark, screen and paper; it loads nothing from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbf9; --surface: #ffffff; --ink: #17191c; --soft: #3d4248; --muted: #6a7078; --line: #e4e4df;
  --good: #14794a; --bad: #b3400c; --good-tint: #e3f2e9; --bar: #e6ecf8;
  --series-1: #2b62c9; --series-2: #d0700a; --series-3: #0d8577; --series-4: #8a4fc4; --series-5: #c23a6b;
  --series-6: #7a7a2a;
  --sans: Inter, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
  --mono: "SF Mono", Menlo, Consolas, "Noto Sans Mono", "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121416; --surface: #1a1d20; --ink: #eeeeeb; --soft: #c9ccd0; --muted: #979ca4; --line: #2e3236;
    --good: #5cc48e; --bad: #f08d54; --good-tint: #17392a; --bar: #263350;
    --series-1: #7ba4f4; --series-2: #f0a04b; --series-3: #4cc0b0; --series-4: #bd93ec; --series-5: #ee7fa6;
    --series-6: #c3c26a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 var(--sans);
  -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
main { max-width: 1160px; margin: 0 auto; padding: 56px 28px 96px; }
p, dl, dd, ul, ol, figure { margin: 0; padding: 0; }
ul, ol { list-style: none; }
h1 { margin: 0; font-size: clamp(34px, 5.4vw, 52px); line-height: 1.08; font-weight: 680; letter-spacing: -0.026em;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 23px; font-weight: 650; letter-spacing: -0.014em; }
h3 { margin: 0 0 4px; font-size: 16px; font-weight: 650; }
section { margin-top: 72px; scroll-margin-top: 24px; }
.lead { margin: 18px 0 0; max-width: 46em; font-size: 18px; line-height: 1.5; color: var(--soft); }
.lead b { color: var(--ink); font-weight: 650; }
.note { max-width: 52em; color: var(--muted); font-size: 14px; }
.eyebrow { margin-bottom: 10px; color: var(--muted); font-size: 13.5px; }
.warning { display: inline-block; padding: 0 8px; border-radius: 99px; color: var(--bad);
  border: 1px solid currentColor; font-size: 12px; white-space: nowrap; }
code, pre { font-family: var(--mono); font-size: 0.88em; }
.number { font-variant-numeric: tabular-nums; }

.seeds { margin-top: 12px; font-size: 14px; color: var(--muted); }
a { color: var(--series-1); text-underline-offset: 3px; text-decoration-thickness: 1px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 28px; padding: 12px 0; font-size: 14px;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--ink); text-decoration: underline; }
.unlike { max-width: 60em; margin-top: 8px; padding: 6px 12px; color: var(--bad); font-size: 14px;
  border-left: 3px solid currentColor; overflow-wrap: anywhere; }

.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 22px 28px; margin-top: 36px;
  padding-top: 24px; border-top: 1px solid var(--line); }
.facts dt { color: var(--muted); font-size: 13px; }
.facts dd { font-weight: 560; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.parts { display: flex; height: 10px; margin-top: 28px; border-radius: 5px; overflow: hidden; gap: 2px; }
.parts i { background: var(--series-1); min-width: 2px; }
.part-names { display: flex; flex-wrap: wrap; gap: 4px 22px; margin-top: 9px; font-size: 13.5px; color: var(--muted); }
.part-names b, .legend b { color: var(--ink); font-weight: 560; font-variant-numeric: tabular-nums; }
.part-names i { display: inline-block; width: 10px; height: 10px; margin-right: 7px; border-radius: 3px;
  background: var(--series-1); }

.scroll { overflow-x: auto; margin-top: 22px; }
table.scores { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scores th, .scores td { padding: 8px 0 8px 26px; text-align: right; vertical-align: baseline; font-weight: 400; }
.scores th:first-child { padding-left: 0; text-align: left; }
.scores thead th { padding-bottom: 12px; border-bottom: 1px solid var(--ink); vertical-align: bottom;
  white-space: nowrap; }
.scores thead b { font-weight: 650; }
.scores thead small { display: block; color: var(--muted); font-size: 12.5px; font-weight: 400; }
.scores thead small.unseen { white-space: normal; min-width: 11em; }
.scores tbody tr.group th { padding: 26px 0 8px; color: var(--soft); font-weight: 400; }
.scores tbody tr.group b { color: var(--ink); font-weight: 650; margin-right: 8px; }
.scores tbody tr:not(.group) { border-top: 1px solid var(--line); }
.scores td { font-size: 17px; font-weight: 560; white-space: nowrap; }
.scores td small { display: block; color: var(--muted); font-size: 12.5px; font-weight: 400; }
.scores td .share { display: block; height: 3px; margin: 3px 0 1px auto; width: 96px; border-radius: 2px;
  background: var(--line); }
.scores td .share i { display: block; height: 3px; border-radius: 2px; }
.difference { font-weight: 560; }
.difference.better { color: var(--good); }
.difference.worse { color: var(--bad); }
.scores td small.other { max-width: 13em; margin-left: auto; color: var(--soft); white-space: normal;
  overflow-wrap: anywhere; }
.scores th > div { display: grid; grid-template-columns: 8.2em minmax(0, 38em); align-items: baseline; }
.scores.crowded tbody tr:not(.group) th { width: 17em; min-width: 11em; }
.scores.crowded th > div { display: block; }
.scores.crowded .metric { display: block; }
.metric { font-weight: 600; }
.meaning { color: var(--muted); font-size: 14px; }

.breakdowns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr));
  gap: 8px 48px; align-items: start; }
.breakdown, .mistakes { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
.breakdown th, .breakdown td, .mistakes th, .mistakes td { padding: 5px 0 5px 18px; text-align: right;
  vertical-align: baseline; font-weight: 400; border-bottom: 1px solid var(--line); }
.breakdown th:first-child, .mistakes th, .mistakes td { text-align: left; overflow-wrap: anywhere; }
.breakdown th:first-child, .mistakes th:first-child, .mistakes td:first-child { padding-left: 0; }
.breakdown thead th, .mistakes thead th { color: var(--muted); font-size: 13px; }
.breakdown b, .mistakes tbody th { font-weight: 560; }
.breakdown td small { display: block; color: var(--muted); font-size: 12px; white-space: nowrap; }
.breakdown .share { position: relative; display: block; width: 88px; height: 3px; margin: 4px 0 3px auto;
  border-radius: 2px; background: var(--line); }
.breakdown .share i { display: block; height: 3px; border-radius: 2px; }
.breakdown .share u { position: absolute; top: -2px; height: 7px; border: solid var(--muted); border-width: 0 1px; }
.mistakes td:first-child { width: 4em; }
.confusion { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
.confusion th, .confusion td { padding: 4px 8px; text-align: center; font-weight: 400; border: 1px solid var(--line); }
.confusion tbody th { text-align: left; }
.mistakes thead th { white-space: nowrap; }
.mistakes tbody th { min-width: 9em; }
.mistakes tbody td:last-child { color: var(--muted); }
h4 { margin: 22px 0 0; font-size: 14.5px; font-weight: 560; color: var(--soft); }
.rank { display: inline-block; margin-top: 4px; padding: 0 7px; border-radius: 99px; background: var(--bar);
  color: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; white-space: nowrap; }

.plot { position: relative; touch-action: pan-y; }
.mark { position: absolute; top: 4%; height: 83%; width: 1px; background: var(--muted); pointer-events: none; }
.told { position: absolute; top: 4px; z-index: 3; padding: 5px 9px; border-radius: 6px; font-size: 12.5px;
  line-height: 1.4; color: var(--ink); background: var(--surface); border: 1px solid var(--line);
  pointer-events: none; font-variant-numeric: tabular-nums; max-width: 100%; overflow-wrap: anywhere; }
.told i { display: inline-block; width: 8px; height: 8px; margin-right: 6px; border-radius: 50%; }
.told div:first-child { color: var(--muted); }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 30px 34px;
  margin: 10px 0 0; }
#curves h3 { margin-top: 34px; font-size: 15px; color: var(--muted); font-weight: 560; }
.charts figure { display: flex; flex-direction: column; justify-content: space-between; }
.charts figcaption { margin-bottom: 8px; }
.charts figcaption > b { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 13px; color: var(--muted); }
.legend i { display: inline-block; width: 9px; height: 9px; margin-right: 6px; border-radius: 50%; }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(235px, 1fr)); gap: 26px 30px; }
svg.chart { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
svg.chart text { font-family: inherit !important; font-size: 10.5px !important; font-variant-numeric: tabular-nums; }
.small svg.chart text { font-size: 13.5px !important; }

.tabs { display: none; gap: 4px; flex-wrap: wrap; position: sticky; top: 0; z-index: 2; margin: 14px -8px 0;
  padding: 10px 8px; background: var(--page); border-bottom: 1px solid var(--line); }
.scripted .tabs { display: flex; }
.tabs button, .filter button { padding: 5px 14px; border: 1px solid transparent; border-radius: 99px;
  color: var(--muted); background: none; font: 560 14px var(--sans); cursor: pointer; }
.tabs button:hover, .filter button:hover { color: var(--ink); }
.tabs button[aria-selected=true] { color: var(--page); background: var(--ink); }
.filter { display: none; gap: 2px; margin-left: auto; }
.scripted .filter { display: flex; }
.filter button { padding: 2px 11px; font-size: 13px; }
.filter button[aria-pressed=true] { color: var(--ink); border-color: var(--line); background: var(--surface); }
.panel { padding-top: 30px; }
.panel > div { margin-top: 52px; }
.panel > div:first-of-type { margin-top: 0; }
.panel-title { padding-bottom: 2px; font-size: 20px; }
.scripted .panel-title { display: none; }
.titled { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 16px; }
.titled h3 { margin: 0; }

img, .picture { display: block; border-radius: 8px; background-color: #fff; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(122px, 1fr)); gap: 24px 18px;
  margin-top: 18px; }
.gallery img { width: 100%; aspect-ratio: 1; object-fit: contain; padding: 6%; border: 1px solid var(--line); }
.gallery figcaption { margin-top: 8px; line-height: 1.32; overflow-wrap: anywhere; }
.gallery .generated { font-weight: 560; }
.exact .generated { color: var(--good); }
.exact img { border-color: var(--good); box-shadow: 0 0 0 1px var(--good); }
.generated .hit { color: var(--good); }
.generated .miss { color: var(--bad); }
.truth { margin-top: 3px; font-size: 13px; color: var(--muted); }
.tick { font-weight: 700; color: var(--good); }
[data-show=exact] .wrong, [data-show=wrong] .exact { display: none; }

.attentions { display: flex; flex-wrap: wrap; gap: 30px 52px; margin-top: 18px; }
.attention { display: flex; flex-wrap: wrap; gap: 10px; }
.attention figure { width: 96px; font-size: 13px; text-align: center; line-height: 1.25; }
.attention figcaption { margin-top: 5px; overflow-wrap: anywhere; }
.picture, .look { position: relative; width: 96px; height: 96px; overflow: hidden; border-radius: 8px;
  border: 1px solid var(--line); background-color: #fff; }
.picture, .look i { background-image: var(--image); background-size: contain; background-position: center;
  background-repeat: no-repeat; }
.look i { position: absolute; inset: 0; filter: grayscale(1); opacity: 0.5; }
.look img { position: absolute; inset: 0; width: 100%; height: 100%; border-radius: 0; background: none; }
.attention .source figcaption { color: var(--muted); }
.scale { display: inline-block; width: 74px; height: 8px; margin: 0 6px; border-radius: 4px; vertical-align: 1px;
  border: 1px solid var(--line); background: linear-gradient(90deg, transparent, #ffc400aa 25%, #de164e); }

.neighbours { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 26px 34px;
  margin-top: 18px; }
.neighbour { display: grid; grid-template-columns: 84px minmax(0, 1fr); gap: 14px; align-items: start; }
.neighbour img { width: 84px; height: 84px; object-fit: contain; padding: 5px; border: 1px solid var(--line); }
.neighbour li { position: relative; display: flex; gap: 8px; padding: 1px 0 1px 8px; margin-bottom: 2px;
  font-size: 13.5px; line-height: 1.4; overflow-wrap: anywhere; }
.neighbour li::before { content: ""; position: absolute; inset: 0 auto 0 0; border-radius: 4px;
  width: calc((100% - 40px) * var(--similarity)); background: var(--bar); }
.neighbour li > * { position: relative; }
.neighbour li .number { flex: none; margin-left: auto; color: var(--muted); font-size: 12.5px; }
.neighbour li.match { color: var(--good); font-weight: 600; }
.neighbour li.match::before { background: var(--good-tint); }

.queries { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 26px 44px;
  margin-top: 18px; }
.query p { margin-bottom: 7px; font-weight: 560; }
.query ol { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 9px; }
.query img { width: 100%; aspect-ratio: 1; object-fit: contain; padding: 5%; border: 1px solid var(--line); }
.query li { font-size: 12.5px; text-align: center; color: var(--muted); }
.query li.match { color: var(--good); font-weight: 650; }
.query li.match img { border-color: var(--good); box-shadow: 0 0 0 2px var(--good); }

details { margin-top: 14px; border-top: 1px solid var(--line); padding-top: 12px; }
details.more { border: 0; padding-top: 6px; }
summary { cursor: pointer; font-weight: 560; }
details.more > summary { color: var(--muted); font-size: 14px; }
pre { margin: 12px 0 0; padding: 16px 18px; border: 1px solid var(--line); border-radius: 8px; overflow-x: auto;
  background: var(--surface); line-height: 1.55; }
.plain { width: 100%; margin-top: 10px; border-collapse: collapse; font-size: 13.5px; }
.plain th, .plain td { padding: 4px 18px 4px 0; text-align: left; font-weight: 400; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.plain th { color: var(--muted); width: 17em; }
.plain.changes th { width: 34%; }
.plain.changes td { width: 33%; }
.plain.changes thead th, .plain.changes thead td { color: var(--muted); font-size: 13px; }
.plain td { font-variant-numeric: tabular-nums; }
footer { margin-top: 72px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--muted); font-size: 13px; }

@media (max-width: 640px) {
  main { padding: 32px 18px 64px; }
  section { margin-top: 56px; }
  .lead { font-size: 16.5px; }
  .facts { grid-template-columns: repeat(2, 1fr); gap: 16px 18px; }
  .scores th > div { display: block; }
  .scores tr > th:first-child { position: sticky; left: 0; background: var(--page); }
  .scores tr.group p { position: sticky; left: 0; width: calc(100vw - 36px); }
  .scores tr.group b { display: block; }
  .meaning { display: block; min-width: 9em; max-width: 20em; line-height: 1.35; font-size: 13px; }
  .scores th, .scores td { padding-left: 16px; }
  .scores td { font-size: 15.5px; }
  .scores td .share { width: 56px; }
  .gallery { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 20px 12px; }
  .gallery figcaption { font-size: 13.5px; }
  .small svg.chart text { font-size: 10.5px !important; }
  .attention figure, .picture, .look { width: 72px; }
  .picture, .look { height: 72px; }
  .plain th { width: 9em; }
}
@media print {
  @page { margin: 14mm; }
  :root { --page: #fff; }
  body { font-size: 11px; }
  main { max-width: none; padding: 0; }
  section { margin-top: 28px; }
  .panel { display: block !important; }
  .charts, .neighbours { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 14px 18px; }
  .charts.small { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .gallery { grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 12px 10px; }
  .queries { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px 26px; }
  .scores th, .scores td { padding-top: 4px; padding-bottom: 4px; }
  .gallery .truth, .neighbour li, .query li, .legend, .attention figure { font-size: 9.5px; }
  .attentions { gap: 12px 26px; }
  .attention { gap: 6px; }
  .attention figure, .picture, .look { width: 52px; }
  .picture, .look { height: 52px; }
  .neighbour { grid-template-columns: 52px minmax(0, 1fr); gap: 8px; }
  .neighbour img { width: 52px; height: 52px; }
  .scripted .panel-title { display: block; }
  .scripted .tabs, .scripted .filter { display: none; }
  .mark, .told { display: none; }
  nav { display: none; }
  .breakdowns { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .breakdown th, .breakdown td, .mistakes th, .mistakes td { padding-top: 2px; padding-bottom: 2px; }
  .breakdown, .mistakes { font-size: 10px; }
  figure, .neighbour, .query, .attention, .scores tr, .breakdown tr, .mistakes tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
