// Tables: the same numbers as the plots, for eyes without a mouse, for screen readers and for copying.

const maxTableRows = 500;

function evenly(total, wanted) {
  if (total <= wanted) return Array.from({length: total}, (_, i) => i);
  return Array.from({length: wanted}, (_, i) => Math.floor(i * (total - 1) / (wanted - 1)));
}

// columns: [{title, format}]; rows: [[cell]]. A cell is text, a number (shown by the column's format, or in full) or null.
function table(columns, rows, caption) {
  const kept = evenly(rows.length, maxTableRows);
  const isText = columns.map((_, c) => rows.every(row => typeof row[c] === 'string' || row[c] instanceof Node || row[c] === null));
  const head = el('tr', {}, columns.map((column, c) => el('th', {scope: 'col', class: isText[c] ? 'text' : null}, column.title)));
  const body = kept.map(r => el('tr', {}, rows[r].map((cell, c) => {
    if (cell === null || cell === undefined) return el('td', {}, '\u2013');
    const content = typeof cell === 'number' ? (columns[c].format || String)(cell) : cell;
    return el(c === 0 ? 'th' : 'td', {class: isText[c] ? 'text' : null, scope: c === 0 ? 'row' : null}, content);
  })));
  const note = kept.length < rows.length
    ? el('p', {class: 'note'}, kept.length + ' of ' + whole(rows.length) + ' rows, evenly spread, the first and the last among them.')
    : null;
  return scrolling(el('div', {class: 'table', tabindex: '0', role: 'region', 'aria-label': caption || 'Table'},
    el('table', {}, caption ? el('caption', {}, caption) : null, el('thead', {}, head), el('tbody', {}, body))), note);
}

// Says where there is more than is seen: a shadow at each side that goes on, and words.
function scrolling(box, note) {
  const hint = el('p', {class: 'note scroll-hint', hidden: true});
  const frame = el('div', {class: 'scrolling'}, note, hint, el('div', {class: 'scrolled'}, box));
  const look = () => {
    const wide = box.scrollWidth - box.clientWidth, high = box.scrollHeight - box.clientHeight;
    const more = {left: box.scrollLeft > 1, right: box.scrollLeft < wide - 1, top: box.scrollTop > 1, bottom: box.scrollTop < high - 1};
    for (const [side, is] of Object.entries(more)) box.parentNode.classList.toggle('more-' + side, is);
    hint.hidden = wide <= 1 && high <= 1;
    const what = [wide > 1 ? 'columns \u2192' : null, high > 1 ? 'rows \u2193' : null].filter(Boolean);
    hint.textContent = 'Scroll for more ' + what.join(' and ');
  };
  box.addEventListener('scroll', look, {passive: true});
  new ResizeObserver(() => requestAnimationFrame(look)).observe(box);
  return frame;
}

// Behind a plot, closed until it is asked for.
function tableBehind(label, make) {
  const details = el('details', {class: 'numbers'}, el('summary', {}, label));
  details.append(make());
  return details;
}

// A column per series, a row per x that some series has. `extra`: columns [{title, of: Map(x -> value)}] after the first.
function curvesTable(xTitle, series, extra = []) {
  const xs = [...new Set(series.flatMap(s => s.x))].sort((a, b) => a - b);
  const values = series.map(s => new Map(s.x.map((x, i) => [x, s.y[i]])));
  const at = (map, x) => map.has(x) && isNumber(map.get(x)) ? map.get(x) : null;
  const columns = [{title: xTitle}, ...extra.map(e => ({title: e.title})), ...series.map(s => ({title: s.name}))];
  return table(columns, xs.map(x => [x, ...extra.map(e => at(e.of, x)), ...values.map(map => at(map, x))]));
}

function thinningNote(series) {
  const thinned = series.filter(s => s.stretch > 1);
  if (thinned.length === 0) return null;
  const most = thinned.reduce((a, b) => a.rows >= b.rows ? a : b);
  return 'Thinned: ' + whole(most.x.length) + ' of ' + whole(most.rows) + ' rows are in this page, the smallest and the largest of every ' +
         whole(most.stretch) + '.';
}
