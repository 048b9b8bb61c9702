// Maps of one step, which a slider chooses: depth weights, cosines of sources, the experts' load. All sliders of a page move together,
// unless they are unlinked.

const sliders = [];  // {steps, go(index)}
const linkBoxes = [];

function nearestIndex(steps, step) {
  let best = 0;
  steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(steps[best] - step)) best = i; });
  return best;
}

function chooseStep(slider, index) {
  slider.go(index);
  if (!view.linked) return;
  for (const other of sliders) if (other !== slider) other.go(nearestIndex(other.steps, slider.steps[index]));
}

// Above the maps of a section: a box for all of them.
function linkControl() {
  const label = checkBox('control-linked-' + linkBoxes.length, 'one step for all maps', view.linked, isChecked => {
    view.linked = isChecked;
    for (const box of linkBoxes) box.checked = isChecked;
    if (isChecked && sliders.length > 0) chooseStep(sliders[0], sliders[0].index);
  });
  linkBoxes.push(label.querySelector('input'));
  return el('form', {class: 'controls link', 'aria-label': 'How the steps are chosen'}, label);
}

// make(index) gives the map of the step at `index`.
function slidingMap(host, steps, make, label) {
  const said = el('output', {}, ''), last = steps.length - 1;
  const input = el('input', {type: 'range', min: 0, max: last, value: last, step: 1, 'aria-label': label + ', logged step'});
  const plot = el('div', {class: 'panel'}), numbers = el('div');
  host.append(el('label', {class: 'slider'}, 'Step ', input, ' ', said), plot, tableBehind('Table of this step', () => numbers));
  const slider = {steps, index: last, redraw: () => {}, go(index) {
    slider.index = index;
    input.value = index;
    said.textContent = whole(steps[index]);
    input.setAttribute('aria-valuetext', 'step ' + steps[index]);
    const map = make(index);
    numbers.replaceChildren(table([{title: capital(map.rowLabel)}, ...map.columns.map(title => ({title}))],
                                  map.rows.map((title, r) => [title, ...map.values[r]])));
    slider.redraw();
  }};
  input.addEventListener('input', () => chooseStep(slider, Number(input.value)));
  sliders.push(slider);
  waiting.push(() => {
    slider.redraw = heatMap(plot, () => make(slider.index));
    slider.go(last);
  });
}

// A figure per run, and per other run one of its difference from the first. of(run): null, or {steps, rows, columns, values(index)} and
// what else a map says; made for one `noun`.
function slidingFigures(runs, {of, plot, titleOf, note, noun, label}) {
  const many = runs.length > 1, all = runs.map(of);
  const make = (map, title, files) => {
    const host = figure(title, note);
    host.dataset.plot = plot;
    if (map.columns.length > 14) host.classList.add('wide');
    slidingMap(host, map.steps, index => ({...map, title: title + ', step ' + map.steps[index], values: map.values(index),
                                           more: map.more ? (r, c) => map.more(index, r, c) : null}), label);
    exportTools(host, files, () => ({
      columns: ['run', 'step', map.rowLabel, map.columnLabel, withUnit(map.name, map.unit)],
      rows: map.steps.flatMap((step, index) => map.values(index).flatMap((row, r) => row.flatMap((value, c) =>
        value === undefined ? [] : [[map.run, step, map.rows[r], map.columns[c], value]])))}));
    return host;
  };
  const figures = all.map((map, i) => map && make({...map, run: runs[i].label}, titleOf(many ? runs[i].label : ''), [runs[i].label, noun]));
  for (let i = 1; i < runs.length; ++i) {
    if (!all[0] || !all[i]) continue;
    const title = 'Difference of the ' + noun + ': ' + differenceName(runs[0], runs[i]), map = frameDifference(runs, i, all);
    if (!map) {
      figures.push(figure(title, 'The runs have other ' + noun + ', or no logged step in common.'));
      continue;
    }
    const host = make(map, title, [runs[i].label, 'minus', runs[0].label, noun]);
    if (map.domain[0] === 0 && map.domain[1] === 0) host.querySelector('figcaption').append(equalNote());
    host.dataset.plot = plot + '-difference';
    figures.push(host);
  }
  return figures.filter(Boolean);
}

// Of the steps that both have; null where there is none, or where the maps have other rows or columns.
function frameDifference(runs, i, all) {
  const [a, b] = [all[0], all[i]];
  const isSame = JSON.stringify([a.rows, a.columns]) === JSON.stringify([b.rows, b.columns]);
  const common = a.steps.map((step, k) => [k, b.steps.indexOf(step)]).filter(pair => pair[1] >= 0);
  if (!isSame || common.length === 0) return null;
  const pairAt = (index, r, c) => [a.values(common[index][0])[r][c], b.values(common[index][1])[r][c]];
  const values = index => {
    const [first, other] = [a.values(common[index][0]), b.values(common[index][1])];
    return first.map((row, r) => row.map((x, c) => {
      const y = other[r][c];
      if (!isNumber(x) || !isNumber(y)) return x === undefined && y === undefined ? undefined : null;
      return Math.abs(y - x) <= sixDigits * Math.max(Math.abs(x), Math.abs(y)) ? 0 : y - x;
    }));
  };
  const [low, high] = extent(common.flatMap((_, index) => values(index)));
  return {...a, run: runs[i].label + ' - ' + runs[0].label, name: 'difference of ' + a.name, steps: common.map(([k]) => a.steps[k]), values,
          isDifference: true, domain: [low, high], more: (index, r, c) => bothValues(runs[0], runs[i], pairAt(index, r, c))};
}

// ---- Depth weights ----

function depthMap(run) {
  const depth = run.layers && run.layers.depth;
  if (!depth) return null;
  return {steps: depth.steps, rows: depth.reads.map(placeName), columns: depth.sources, name: 'weight', unit: 'mean softmax weight',
          domain: [0, extent(depth.weights.flat().map(row => row || []))[1]], isLog: false,
          absentName: 'not among the sources of this read', tilt: true, square: true, rowLabel: 'read before', columnLabel: 'source',
          columnName: 'source', values: index => depth.reads.map((_, r) => {
            const row = new Array(depth.sources.length).fill(undefined), weights = depth.weights[index][r];
            depth.columns[r].forEach((column, k) => { row[column] = weights ? weights[k] : null; });
            return row;
          })};
}

function cosineMap(run) {
  const cosines = run.layers && run.layers.cosines;
  if (!cosines) return null;
  const n = cosines.sources.length;
  return {steps: cosines.steps, rows: cosines.sources, columns: cosines.sources, name: 'cosine', unit: 'mean cosine', domain: [-1, 1],
          isLog: false,
          tilt: true, square: true, rowLabel: 'source', columnLabel: 'other source', columnName: 'source', values: index => {
            const values = Array.from({length: n}, (_, i) => Array.from({length: n}, (_, j) => i === j ? 1 : null));
            let pair = 0;
            for (let i = 0; i < n; ++i)
              for (let j = i + 1; j < n; ++j, ++pair)
                values[i][j] = values[j][i] = cosines.cosines[index] ? cosines.cosines[index][pair] : null;
            return values;
          }};
}

function depthSection(runs) {
  const weights = slidingFigures(runs, {
    of: depthMap, plot: 'depth-weights', titleOf: name => name || 'Where each sublayer reads', noun: 'depth weights',
        label: 'Depth weights'});
  const cosines = slidingFigures(runs, {
    of: cosineMap, plot: 'source-cosines', titleOf: name => (name ? name + ': how' : 'How') + ' alike the sources are',
        noun: 'cosines of sources',
    note: 'Mean cosine over tokens: what is alike to the keys cannot be told apart by a query.', label: 'Cosines of sources'});
  if (weights.length + cosines.length === 0) return null;
  const place = section('depth', 'Depth weights',
                        'The mean softmax weight that each read puts on its sources: the embedding, the finished ' +
                        'blocks, and the open sum where the read sees one. Each row sums to 1.', ...framesNote(runs, 'depth'));
  place.append(linkControl(), el('div', {class: 'figures'}, weights, cosines));
  return place;
}

// ---- Experts ----

function expertMap(run) {
  const experts = run.layers && run.layers.experts;
  if (!experts) return null;
  const numExperts = Math.max(...experts.load.flat().map(row => row ? row.length : 0));
  return {steps: experts.steps, rows: experts.layers.map(layer => 'layer ' + layer),
          columns: Array.from({length: numExperts}, (_, e) => String(e)),
          name: 'load', unit: 'tokens over the mean', domain: [0, Math.max(1, extent(experts.load.flat().map(row => row || []))[1])],
              isLog: false,
          square: true, rowLabel: 'layer', columnLabel: 'expert', columnName: 'expert',
          values: index => experts.load[index].map(row => row || new Array(numExperts).fill(null))};
}

function expertSection(runs) {
  const figures = slidingFigures(runs, {
    of: expertMap, plot: 'expert-load', titleOf: name => name || 'Load per expert', noun: 'loads of experts', label: 'Load per expert'});
  if (figures.length === 0) return null;
  const place = section('experts', 'Router load',
                        'Tokens that each expert was given in the step, over the mean of its layer: 1 is balanced, 0 is an ' +
                        'expert without work.', ...framesNote(runs, 'experts'));
  place.append(linkControl(), el('div', {class: 'figures'}, figures));
  return place;
}

// What the sliders leave out.
function framesNote(runs, key) {
  const said = runs.filter(run => run.layers && run.layers[key] && run.layers[key].steps.length < run.layers.logged)
                   .map(run => (runs.length > 1 ? run.label + ': ' : '') + whole(run.layers[key].steps.length) + ' of ' +
                        whole(run.layers.logged) +
                               ' logged steps are in this page, evenly spread, and the last.');
  return said.length > 0 ? [said.join(' ')] : [];
}
