// Maps: rows x columns of colours, with a bar that says what they mean.

const textWidth = text => text.length * 6.3;

// map: {values: [row][column], isLog, domain}
function colourScale(map) {
  const usable = map.values.map(row => map.isLog ? row.filter(value => value > 0) : row);
  let [low, high] = map.domain || extent(usable);
  if (low === high) [low, high] = map.isLog ? [low / 1.1, high * 1.1] : [low - (Math.abs(low) * 0.05 || 0.5), high + (Math.abs(high) * 0.05 || 0.5)];
  const warp = map.isLog ? Math.log : value => value;
  const of = value => (warp(value) - warp(low)) / (warp(high) - warp(low));
  return {low, high, colour: value => !isNumber(value) || (map.isLog && value <= 0) ? 'none' : shade(of(value))};
}

function colourBar(root, map, colours, box) {
  const steps = 40, height = box.bottom - box.top;
  const y = scale([colours.low, colours.high], [box.bottom, box.top], map.isLog, Math.max(2, height / 34));
  for (let i = 0; i < steps; ++i)
    root.append(svg('rect', {class: 'bar', x: box.left, y: box.bottom - (i + 1) * height / steps, width: 10, height: height / steps + 0.5, fill: shade((i + 0.5) / steps)}));
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
    const at = box.left + (c + 0.5) * cell.width;
    root.append(isTilted
      ? svg('text', {class: 'tick', 'text-anchor': 'end', transform: 'translate(' + (at + 4) + ',' + (box.bottom + 12) + ') rotate(-45)'}, map.columns[c])
      : svg('text', {class: 'tick', x: at, y: box.bottom + 16, 'text-anchor': columns > 1 && c === 0 && cell.width < widest ? 'start' : 'middle'}, map.columns[c]));
  }
  root.append(svg('text', {class: 'label', x: box.right, y: box.height - 4, 'text-anchor': 'end'}, map.columnLabel),
              svg('text', {class: 'label', x: 0, y: 11}, map.rowLabel + (rows > 1 ? ' \u2193' : '')),
              svg('text', {class: 'label', x: Math.min(box.width, Math.max(box.right + 60, 200)), y: 11, 'text-anchor': 'end'}, map.unit + (map.isLog ? ', log' : '')));
}

function addCells(root, map, colours, box, cell) {
  const group = svg('g', {class: 'cells', 'shape-rendering': 'crispEdges'});
  map.values.forEach((row, r) => row.forEach((value, c) => {
    if (value === undefined || (value === null && map.skipEmpty)) return;
    group.append(svg('rect', {class: isNumber(value) ? 'cell' : 'cell empty', x: (box.left + c * cell.width).toFixed(2), y: (box.top + r * cell.height).toFixed(2),
                              width: (cell.width + 0.02).toFixed(2), height: (cell.height + 0.02).toFixed(2), fill: colours.colour(value)}));
  }));
  group.addEventListener('pointermove', event => {
    const bounds = root.getBoundingClientRect(), zoom = box.width / bounds.width;
    const c = Math.floor(((event.clientX - bounds.left) * zoom - box.left) / cell.width);
    const r = Math.floor(((event.clientY - bounds.top) * zoom - box.top) / cell.height);
    if (!map.values[r] || map.values[r][c] === undefined) return;
    showTip(event, [map.rows[r] + ', ' + map.columnName + ' ' + map.columns[c], map.name + ': ' + short(map.values[r][c], 5)]);
  });
  group.addEventListener('pointerleave', hideTip);
  root.append(group);
}

// map: {title, name, unit, values, rows: [label], columns: [label], rowLabel, columnLabel, columnName, isLog, domain, tilt, skipEmpty}
function drawMap(map, width) {
  const rows = map.rows.length, columns = map.columns.length;
  const colours = colourScale(map);
  const left = 12 + Math.max(...map.rows.map(textWidth), 20), right = 62;
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
  return root;
}

function heatMap(host, make) {
  const frame = el('div', {class: 'plot'});
  host.append(frame);
  return responsive(frame, width => drawMap(make(), width));
}

// A row per column of the map (a step), so that a long run's table grows downwards.
function mapTable(map) {
  const rows = map.columns.map((label, c) => [label, ...map.values.map(row => row[c] === undefined ? null : row[c])]);
  return table([{title: capital(map.columnName)}, ...map.rows.map(title => ({title}))], rows);
}
