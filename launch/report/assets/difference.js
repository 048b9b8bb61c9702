// Where two runs' maps differ: the first run's values are taken from the other's.

// Six digits are in the page: a difference below is none that can be told.
const sixDigits = 2e-6;

// Columns that stand for more steps each, so that two runs' columns have one length. Lengths are powers of two.
function coarser(map, perColumn) {
  const ratio = perColumn / map.perColumn;
  if (ratio <= 1) return map;
  const group = (list, choose) => list.flatMap((_, c) => c % ratio === 0 ? [choose(list.slice(c, c + ratio))] : []);
  const best = choose => part => part.filter(isNumber).reduce((a, b) => a === null ? b : choose(a, b), null);
  return {...map, perColumn, starts: group(map.starts, part => part[0]), ends: group(map.ends, part => part[part.length - 1]),
          values: map.values.map(row => group(row, best(Math.max))), low: (map.low || map.values).map(row => group(row, best(Math.min)))};
}

// Of the sublayers and steps that both have. isLog: log2 of the ratio. null: they have none in common.
function differenceMap(first, other, isLog) {
  const perColumn = Math.max(first.perColumn, other.perColumn);
  const a = coarser(first, perColumn), b = coarser(other, perColumn);
  const twin = (start, c) => b.starts.findIndex((s, d) => s === start && b.ends[d] === a.ends[c]);
  const columns = a.starts.map((start, c) => [c, twin(start, c)]).filter(pair => pair[1] >= 0);
  const rows = a.rows.map((row, r) => [r, b.rows.indexOf(row)]).filter(pair => pair[1] >= 0);
  if (columns.length === 0 || rows.length === 0) return null;
  const pairs = rows.map(([r, s]) => columns.map(([c, d]) => [a.values[r][c], b.values[s][d]]));
  const values = pairs.map(row => row.map(([x, y]) => {
    if (!isNumber(x) || !isNumber(y) || (isLog && (x <= 0 || y <= 0))) return null;
    if (Math.abs(y - x) <= sixDigits * Math.max(Math.abs(x), Math.abs(y))) return 0;
    return isLog ? Math.log2(y / x) : y - x;
  }));
  return {isLog: false, isDifference: true, values, pairs, rows: rows.map(([r]) => a.rows[r]),
          places: rows.map(([r]) => a.places && a.places[r]),
          starts: columns.map(([c]) => a.starts[c]), ends: columns.map(([c]) => a.ends[c]), perColumn, domain: extent(values)};
}

const isEqual = values => values.every(row => row.every(value => value === null || value === 0));
const equalNote = () => el('p', {class: 'note equal'}, 'No difference in the six digits that this page holds.');
const differenceName = (first, other) => other.label + ' \u2212 ' + first.label;

const bothValues = (first, other, pair) => [first.label + ': ' + short(pair[0], 6), other.label + ': ' + short(pair[1], 6)];

function differencePanel(runs, i, maps, quantity) {
  const first = runs[0], other = runs[i];
  const name = quantity.isLog ? other.label + ' / ' + first.label : differenceName(first, other);
  const panel = el('div', {class: 'panel difference-map'}, el('h4', {}, 'Difference: ' + name));
  const map = differenceMap(maps[0], maps[i], quantity.isLog);
  if (!map) {
    panel.append(el('p', {class: 'note'}, 'The runs have no logged step in common.'));
    return panel;
  }
  if (isEqual(map.values)) panel.append(equalNote());
  const ratio = 'log\u2082 of the ratio', title = 'Difference of ' + uncapital(quantity.title);
  const shownQuantity = {...quantity, title, key: quantity.isLog ? ratio : 'difference', unit: quantity.isLog ? ratio : quantity.unit};
  drawPanel(panel, () => shownMap({...map, more: (r, c) => bothValues(first, other, map.pairs[r][c])}, shownQuantity));
  return panel;
}
