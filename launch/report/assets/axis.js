// What curves are drawn against: steps, tokens, or the clock.

// What the controls say; a change draws all curves again.
const view = {x: 'step', smooth: false, logLoss: false, linked: true, redraws: []};

function durationSteps(least) {
  const minute = 60, hour = 3600, day = 86400;
  const steps = [1, 2, 5, 10, 15, 30, minute, 2 * minute, 5 * minute, 10 * minute, 15 * minute, 30 * minute, hour, 2 * hour, 3 * hour,
                 6 * hour,
                 12 * hour, day, 2 * day];
  return steps.find(step => step >= least) || day * roundStep(least / day, 1);
}

function durationTicks(low, high, wanted) {
  const least = (high - low) / Math.max(1, wanted), step = least < 1 ? roundStep(high - low, wanted) : durationSteps(least);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; ++k) ticks.push(Number((k * step).toPrecision(14)));
  return ticks;
}

// 0, 30 s, 5 min, 1 h 30 min, 2 d 6 h
function duration(value) {
  if (!isNumber(value)) return '\u2013';
  if (Math.abs(value) < 60) return value === 0 ? '0' : Number(value.toFixed(3)) + '\u00a0s';
  const parts = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];
  let rest = Math.round(value);
  const said = [];
  for (const [name, size] of parts) {
    const n = Math.floor(rest / size);
    if (n > 0) said.push(n + '\u00a0' + name);
    rest -= n * size;
  }
  return said.slice(0, 2).join(' ');
}

const isoTime = time => new Date(Math.floor(time) * 1000).toISOString().replace('.000Z', 'Z');
const dayOf = time => isoTime(time).slice(0, 10);
const clockOf = time => isoTime(time).slice(11, 19);

// The day stands where it begins, and at the first tick.
function clockFormat(ticks) {
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
  return time => {
    if (step >= 86400) return dayOf(time).slice(5);
    if (time % 86400 === 0) return dayOf(time).slice(5);
    return step >= 60 ? clockOf(time).slice(0, 5) : clockOf(time);
  };
}

function integerTicks(low, high, wanted) {
  return linearTicks(low, high, Math.min(wanted, Math.max(1, high - low))).filter(Number.isInteger);
}

// Digits that tell neighbouring ticks apart.
function digitsOf(ticks, least) {
  if (ticks.length < 2) return least;
  const step = Math.min(...ticks.slice(1).map((tick, i) => Math.abs(tick - ticks[i])));
  const largest = Math.max(...ticks.map(Math.abs));
  return Math.min(15, Math.max(least, Math.ceil(Math.log10(largest / step) + 1)));
}

// name: in the controls; label: below the axis; value: a point in words; tickFormat(ticks): how they are written.
const axes = {
  step: {name: 'steps', label: () => 'optimizer steps', value: step => 'step ' + whole(step), ticks: integerTicks, tickFormat: () => whole},
  tokens: {name: 'tokens', label: () => 'tokens', value: tokens => whole(tokens) + ' tokens', ticks: linearTicks,
           tickFormat: ticks => value => count(value, digitsOf(ticks, 3))},
  running: {name: 'time running', label: () => 'time running', value: time => 'after ' + duration(time), ticks: durationTicks,
            tickFormat: () => duration,
            note: 'Time running: of all starts of a run together, each from its first step on. Pauses between starts are left out, ' +
                  'and so are steps that were lost in a stop and done again.'},
  time: {name: 'time of day (UTC)', value: time => isoTime(time).replace('T', ' '), ticks: durationTicks, tickFormat: clockFormat,
         label: ([low, high]) => 'time of day (UTC), ' + (dayOf(low) === dayOf(high) ? dayOf(low) : dayOf(low) + ' to ' + dayOf(high)),
         note: 'Time of day, UTC: a line has a gap where the run stood still between two starts.'},
};
const hasTimes = run => run.starts.some(start => isNumber(start.time));

// The start that did this step.
function startOf(run, step) {
  let found = run.starts[0];
  for (const start of run.starts) if (start.step <= step) found = start;
  return found;
}

// data.step .. of one of the run's series against an axis; null where it is not known.
function positions(run, data, axis) {
  if (axis === 'step' || axis === 'tokens') return data[axis];
  const known = data.time || [];
  return data.step.map((step, i) => {
    if (!isNumber(known[i])) return null;
    if (axis === 'time') return run.time_zero + known[i];
    const start = startOf(run, step);
    return isNumber(start.running) ? start.running + known[i] - start.time : null;
  });
}

// Where a step is on an axis: at the last point of the loss that is not after it.
function positionOf(run, step, axis) {
  if (axis === 'step') return step;
  const data = run.series.loss, xs = positions(run, data, axis);
  let found = xs[0];
  data.step.forEach((s, i) => { if (s <= step) found = xs[i]; });
  return found;
}

const fullExtent = (runs, axis) => extent(runs.filter(run => run.series.loss).map(run => positions(run, run.series.loss, axis)));

// ---- What happened to a run: it was resumed, a spike was skipped, a stage began ----

const eventWords = {resumed: 'resumed', stage: 'a stage begins', warn: 'spike, gone on', skip: 'spike, batch skipped', rewind: 'spike, rewound'};

// [{step, x, kind, words, colour}] against an axis, in order.
function eventsOf(runs, axis) {
  const many = runs.length > 1;
  return runs.flatMap((run, r) => {
    const common = {run: run.label, ...(many ? {colour: colour(r)} : {})}, said = many ? run.label + ': ' : '';
    const starts = run.starts.slice(1).map(start => ({...common, step: start.step, kind: 'resumed', reason: '', time: start.time,
      what: 'resumed (start ' + start.start + ')', words: said + 'resumed, start ' + start.start + ', at step ' + whole(start.step),
      x: axis === 'step' ? start.step : axis === 'tokens' ? start.tokens : axis === 'time' ? run.time_zero + start.time : start.running}));
    const spikes = (run.spikes || []).map(spike => ({...common, step: spike.step, kind: spike.action, reason: spike.reason, time: null,
      what: eventWords[spike.action] + (spike.passed ? ' (passed over: ' + spike.passed + ')' : ''),
      words: said + eventWords[spike.action] + ', step ' + whole(spike.step), x: positionOf(run, spike.step, axis)}));
    const stages = (run.summary ? run.summary.stages : []).map(stage => ({...common, step: stage.step, kind: 'stage', reason: '', time: null, what: stage.name,
      words: said + stage.name + ', from step ' + whole(stage.step), x: positionOf(run, stage.step, axis)}));
    return [...starts, ...spikes, ...stages].filter(event => isNumber(event.x));
  }).sort((a, b) => a.step - b.step);
}
