"""Style and script of the page of a comparison."""

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
  script-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1c1d1f; --soft: #63666b;
  --line: #e2e2de;
  --good: #1b6e33; --bad: #b3261e; --m0: #1f6fc4; --m1: #d9480f; --m2: #2b8a3e; --m3: #9c36b5;
  --m4: #8a6d00;
  --m5: #0b7285; --m6: #c2255c; --m7: #495057; }
@media (prefers-color-scheme: dark) {
  :root { --page: #131416; --card: #1c1e21; --ink: #ececea; --soft: #9a9da3; --line: #2c2f33;
  --good: #69db7c;
    --bad: #ff8787; --m0: #74b3f2; --m1: #ff922b; --m2: #69db7c; --m3: #da77f2; --m4: #ffd43b;
  --m5: #66d9e8;
    --m6: #f783ac; --m7: #ced4da; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1440px; padding: 2.5rem clamp(1rem, 4vw, 3rem);
  background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  sans-serif; }
h1 { margin: 0 0 .25rem; font-size: clamp(1.4rem, 3vw, 2rem); line-height: 1.2;
  letter-spacing: -.015em; }
h1, h2, h3, dd { overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .3rem; font-size: 1.25rem; }
h3 { margin: 0 0 .5rem; font-size: 1rem; font-weight: 600; }
small { color: var(--soft); font-size: .78em; font-weight: 400; }
.note { margin: 0 0 1rem; max-width: 75ch; color: var(--soft); }
.scroll { overflow-x: auto; margin: 0 0 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 14px; }
.scroll:focus-visible, select:focus-visible { outline: 3px solid var(--m0); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 600; }
thead th { white-space: nowrap; }
tr > th:first-child { position: sticky; left: 0; min-width: 9rem; max-width: 15rem;
  background: var(--card);
  text-align: left; overflow-wrap: break-word; }
td small, thead small { display: block; white-space: nowrap; }
.baseline { color: var(--soft); }
.baseline th, th.baseline { font-weight: 400; white-space: normal; }
.better { color: var(--good); } .worse { color: var(--bad); }
.chip { display: inline-block; width: .7em; height: .7em; margin-right: .45em; border-radius: 50%;
  background: currentColor; }
.m0 { color: var(--m0); } .m1 { color: var(--m1); } .m2 { color: var(--m2);
  } .m3 { color: var(--m3); }
.m4 { color: var(--m4); } .m5 { color: var(--m5); } .m6 { color: var(--m6);
  } .m7 { color: var(--m7); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 0 0 .6rem; }
.charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
svg { width: 100%; max-width: 560px; background: var(--card); border: 1px solid var(--line);
  border-radius: 14px; }
svg text { fill: var(--soft); font-size: 11px; } svg .title { fill: var(--ink); font-size: 13px;
  font-weight: 600; }
svg .grid { stroke: var(--line); } svg polyline { fill: none; stroke: currentColor;
  stroke-width: 2; }
svg circle { fill: currentColor; }
.pick { display: inline-block; margin: 0 0 .8rem; }
select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px;
  padding: .2rem .5rem; }
article { margin: 0 0 1rem; padding: .9rem 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 14px; }
.row { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
figure { margin: 0; min-width: 0; }
figure img, .none { display: block; width: 100%; border-radius: 6px; }
.none { aspect-ratio: 1; display: grid; place-items: center; border: 1px dashed var(--line);
  color: var(--soft); }
figcaption { font-size: .86rem; font-weight: 600; overflow-wrap: anywhere; }
figcaption small { display: block; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem;
  margin: 0 0 1.2rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .86rem; }
@media (max-width: 560px) {
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
  .row { grid-template-columns: repeat(2, 1fr); }
}
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444;
  --line: #bbb; --good: #1b6e33;
    --bad: #b3261e; --m0: #1f6fc4; --m1: #d9480f; --m2: #2b8a3e; --m3: #9c36b5; --m4: #8a6d00;
  --m5: #0b7285;
    --m6: #c2255c; --m7: #495057; }
  body { padding: 0; font-size: 11px; max-width: none; }
  .scroll { overflow: visible; } th, td { padding: .2rem .3rem; } thead th { white-space: normal; }
  tr > th:first-child { position: static; min-width: 0; }
  td small { white-space: normal; }
  article, svg, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .row { grid-template-columns: repeat(auto-fit, minmax(90px, 1fr)); }
  * { print-color-adjust: exact; }
}
</style>
<h1>{title}</h1>
"""

FOOT = """
<footer>cmmfnet {version}</footer>
<script>
const metric = document.getElementById("metric");
const show = () => {
  for (const each of document.querySelectorAll("[data-metric]")) each.hidden = each.dataset.metric
  !== metric.value;
};
metric.addEventListener("change", show);
show();

const sort = document.getElementById("sort");
const grid = document.getElementById("grid");
const order = () => {
  const key = sort.value;
  const rows = [...grid.querySelectorAll("article")].map((row) => [row,
  JSON.parse(row.dataset.scores)]);
  rows.sort(([, a], [, b]) => (key === "name" ? 0 : (b[key] ?? -1) - (a[key] ?? -1)) || (a.name <
  b.name ? -1 : 1));
  for (const [row] of rows) grid.append(row);
};
sort.addEventListener("change", order);
order();
document.documentElement.dataset.ready = "yes";
</script>
</html>
"""
