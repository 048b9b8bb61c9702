// Maps: rows x columns of colours, with a bar that says what they mean.

const textWidth = text => text.length * 6.6;

// Blue, a light grey for zero, red: on light and on dark ground apart from the hatching of what is missing. Ends from ColorBrewer's RdBu.
const bluesToReds = [[5, 48, 97], [33, 102, 172], [67, 147, 195], [146, 197, 222], [238, 238, 236], [244, 165, 130], [214, 96, 77],
                     [178, 24, 43], [103, 0, 31]];

// map: {values: [row][column], isLog, isDifference, domain}
function colourScale(map) {
  const usable = map.values.map(row => map.isLog ? row.filter(value => value > 0) : row);
  let [low, high] = map.domain || extent(usable);
  if (map.isDifference) {
    const largest = Math.max(Math.abs(low), Math.abs(high)) || 1;
    [low, high] = [-largest, largest];
  }
  if (low === high) {
    const margin = value => Math.abs(value) * 0.05 || 0.5;
    [low, high] = map.isLog ? [low / 1.1, high * 1.1] : [low - margin(low), high + margin(high)];
  }
  const warp = map.isLog ? Math.log : value => value, palette = map.isDifference ? bluesToReds : viridis;
  const of = value => (warp(value) - warp(low)) / (warp(high) - warp(low));
  return {low, high, at: t => shade(t, palette), colour: value => shade(of(value), palette)};
}

function colourBar(root, map, colours, box) {
  const steps = 40, height = box.bottom - box.top;
  const y = scale([colours.low, colours.high], [box.bottom, box.top], map.isLog, Math.max(2, height / 34));
  for (let i = 0; i < steps; ++i)
    root.append(svg('rect', {class: 'bar', x: box.left, y: box.bottom - (i + 1) * height / steps, width: 10, height: height / steps + 0.5,
                             fill: colours.at((i + 0.5) / steps)}));
  for (const tick of y.ticks) root.append(svg('text', {class: 'tick', x: box.left + 15, y: y(tick) + 4}, short(tick, 3)));
}

// Labels that fit: every n-th, where n rows (or columns) leave `needed` pixels.
const every = (size, needed) => Math.max(1, Math.ceil(needed / size));

function mapAxes(root, map, box, cell) {
  const rows = map.rows.length, columns = map.columns.length;
  const rowStride = every(cell.height, 13);
  map.rows.forEach((label, r) => {
    if (r % rowStride === 0)
      root.append(svg('text', {class: 'tick', x: box.left - 7, y: box.top + (r + 0.5) * cell.height + 4, 'text-anchor': 'end'}, label));
  });
  const widest = Math.max(...map.columns.map(textWidth)), isTilted = map.tilt && widest + 8 > cell.width;
  const stride = isTilted ? every(cell.width, 15) : every(cell.width, widest + 14);
  for (let c = 0; c < columns; c += stride) {
    const at = box.left + (c + 0.5) * cell.width, isFirst = columns > 1 && c === 0 && cell.width < widest;
    root.append(isTilted
      ? svg('text', {class: 'tick', 'text-anchor': 'end', transform: 'translate(' + (at + 4) + ',' + (box.bottom + 12) + ') rotate(-45)'},
            map.columns[c])
      : svg('text', {class: 'tick', x: at, y: box.bottom + 16, 'text-anchor': isFirst ? 'start' : 'middle'}, map.columns[c]));
  }
  root.append(svg('text', {class: 'label', x: box.right, y: box.height - 4, 'text-anchor': 'end'}, map.columnLabel),
              svg('text', {class: 'label', x: 0, y: 11}, map.rowLabel + (rows > 1 ? ' \u2193' : '')),
              svg('text', {class: 'label', x: Math.min(box.width, Math.max(box.right + 60, 200)), y: 11, 'text-anchor': 'end'},
                  logName(map.unit, map.isLog)));
}

// Lines at 45 degrees that go on from one cell to the next.
function hatching(left, top, right, bottom) {
  const apart = 6;
  let path = '';
  for (let k = Math.ceil((left + top) / apart); k * apart < right + bottom; ++k) {
    const sum = k * apart, from = Math.max(left, sum - bottom), to = Math.min(right, sum - top);
    if (to > from) path += 'M' + from.toFixed(1) + ',' + (sum - from).toFixed(1) + 'L' + to.toFixed(1) + ',' + (sum - to).toFixed(1);
  }
  return path;
}

// What a cell is: a number, one that a logarithmic scale can't show, nothing logged (null), or no such place (undefined).
function kindOf(map, value) {
  if (isNumber(value)) return map.isLog && value <= 0 ? 'unscaled' : 'number';
  return value === undefined ? 'absent' : 'missing';
}
const kindWords = {unscaled: 'zero or less: not on a logarithmic scale', missing: 'not logged, or not a number'};
const kindName = (map, kind) => kind === 'absent' ? map.absentName || 'no such cell' : kindWords[kind];

function addCells(root, map, colours, box, cell) {
  const group = svg('g', {class: 'cells', 'shape-rendering': 'crispEdges'});
  let path = '';
  map.values.forEach((row, r) => row.forEach((value, c) => {
    const kind = kindOf(map, value), x = box.left + c * cell.width, y = box.top + r * cell.height;
    if (kind === 'missing' || kind === 'absent') path += hatching(x, y, x + cell.width, y + cell.height);
    if (kind === 'absent') return;
    group.append(svg('rect', {class: kind === 'number' ? 'cell' : 'cell ' + kind, x: x.toFixed(2), y: y.toFixed(2),
                              width: (cell.width + 0.02).toFixed(2), height: (cell.height + 0.02).toFixed(2),
                              fill: kind === 'number' ? colours.colour(value) : null}));
  }));
  root.append(group);
  if (path) root.append(svg('path', {class: 'hatch', d: path}));
  root.append(svg('rect', {class: 'outline', x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top}));
  const area = svg('rect', {x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, fill: 'transparent'});
  area.addEventListener('pointermove', event => {
    const bounds = root.getBoundingClientRect(), ratio = box.width / bounds.width;
    const c = Math.floor(((event.clientX - bounds.left) * ratio - box.left) / cell.width);
    const r = Math.floor(((event.clientY - bounds.top) * ratio - box.top) / cell.height);
    if (!map.values[r] || c < 0 || c >= map.columns.length) return;
    const value = map.values[r][c], kind = kindOf(map, value);
    const column = map.columnTitles ? map.columnTitles[c] : map.columnName + ' ' + map.columns[c];
    const said = isNumber(value) ? map.name + ': ' + short(value, 5) : kindName(map, kind);
    showTip(event, [map.rows[r] + ', ' + column, said,
                    ...(map.more ? map.more(r, c) : [])]);
  });
  area.addEventListener('pointerleave', hideTip);
  root.append(area);
}

// Which of the cells that are no numbers are there, for the key below a map.
function mapKey(map) {
  const kinds = [...new Set(map.values.flat().map(value => kindOf(map, value)))].filter(kind => kind !== 'number');
  if (kinds.length === 0) return null;
  const sample = kind => {
    const box = svg('svg', {width: 22, height: 12, class: 'swatch', 'aria-hidden': 'true'});
    if (kind === 'unscaled') box.append(svg('rect', {class: 'cell unscaled', width: 22, height: 12}));
    else box.append(svg('path', {class: 'hatch', d: hatching(0, 0, 22, 12)}), svg('rect', {class: 'outline', width: 22, height: 12}));
    return box;
  };
  return el('ul', {class: 'legend below'}, kinds.map(kind => el('li', {}, sample(kind), el('span', {}, kindName(map, kind)))));
}

// map: {title, name, unit, values, rows: [label], columns: [label], rowLabel, columnLabel, columnName, columnTitles, more(r, c), isLog,
//       isDifference, domain, tilt, square, absentName; group, starts, ends, full: where its columns are steps}
function drawMap(map, width, frame) {
  const rows = map.rows.length, columns = map.columns.length;
  const colours = colourScale(map);
  const left = 16 + Math.max(...map.rows.map(textWidth), 20), right = 62;
  const cell = {height: Math.min(Math.max(250 / rows, 7), 22)};
  const inner = Math.max(60, width - left - right);
  cell.width = Math.min(inner / columns, map.square ? cell.height * 2.6 : inner);
  const tilted = map.tilt && Math.max(...map.columns.map(textWidth)) + 8 > cell.width;
  const foot = tilted ? 22 + Math.max(...map.columns.map(textWidth)) * 0.72 + 14 : 40;
  const box = {left, right: left + cell.width * columns, top: 20, width};
  box.bottom = box.top + cell.height * rows;
  box.height = box.bottom + foot;
  const root = svg('svg', {viewBox: '0 0 ' + width + ' ' + box.height, width, height: box.height, role: 'img', 'aria-label': map.title});
  addCells(root, map, colours, box, cell);
  mapAxes(root, map, box, cell);
  const barBottom = Math.max(box.bottom, box.top + 60);
  colourBar(root, map, colours, {left: box.right + 10, top: box.top, bottom: Math.min(barBottom, box.height - 4)});
  if (map.group) {
    const column = at => Math.min(Math.max(Math.floor((at - box.left) / cell.width), 0), columns - 1);
    const range = [map.starts[0], map.ends[columns - 1]];
    frame.shown = {group: map.group, x: scale(range, [box.left, box.right], false, 2), full: map.full, range, box,
                   pick: (from, to) => [map.starts[column(from)] - 0.5, map.ends[column(to - 0.01)] + 0.5]};
  }
  return root;
}

// A map whose columns are steps is zoomed with all that is drawn against steps.
function heatMap(host, make) {
  const frame = el('div', {class: 'plot'}), key = el('div');
  host.append(frame, key);
  const redraw = responsive(frame, width => {
    const map = make(), drawing = drawMap(map, width, frame);
    key.replaceChildren(mapKey(map) || '');
    if (frame.sayZoom) frame.sayZoom();
    return drawing;
  });
  if (frame.shown) {
    makeZoomable(host.closest('figure'), frame, 'Map: ' + host.closest('figure').querySelector('h3').textContent, redraw);
    onZoom(frame.shown.group, redraw);
    frame.sayZoom();
  }
  return redraw;
}

// A row per column of the map (a step), so that a long run's table grows downwards.
function mapTable(map) {
  const rows = map.columns.map((label, c) => [label, ...map.values.map(row => row[c] === undefined ? null : row[c])]);
  return table([{title: capital(map.columnName)}, ...map.rows.map(title => ({title}))], rows);
}
