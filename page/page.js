// The page: it sends files, and draws what comes back.

import { drawCloud, unproject } from './cloud.js'

const HOLE = [191, 191, 191]
const PICTURES = /\.(jpe?g|png|bmp|webp|tiff?)$/i
const $ = (id) => document.getElementById(id)

let about
let colors // {depth, echo}: 256 colours, three bytes each
let chosen = { audio: null, rgb: null } // files of one's own
let latest = 0 // number of the request whose answer is to be shown
let shown = null // the answer on the page, its values decoded
let cloud = { of: 'student', points: null, pixels: null }

// ------------------------------------------------------------------------------------------------------------ start

async function start() {
  about = await ask('about')
  colors = { depth: bytesOf(about.colors.depth), echo: bytesOf(about.colors.echo) }
  listFacts($('student'), about.student)
  if (about.teacher) listFacts($('teacher'), about.teacher)
  $('no-teacher').hidden = Boolean(about.teacher)
  const fact = new Map(about.student)
  const parts = [shortened(fact.get('file')), fact.get('trained on'), fact.get('range')]
  if (fact.has('validation RMSE')) parts.push(`validation RMSE ${fact.get('validation RMSE')}`)
  $('summary').textContent = parts.filter(Boolean).join(' · ')
  listExamples()
  listen()
  const first = about.examples.findIndex((example) => example.picture || !about.inputs.includes('rgb'))
  if (first >= 0) showExample(first)
  else $('status').textContent = 'Drop a recording, or choose one.'
}

function listFacts(list, facts) {
  list.replaceChildren(
    ...facts.flatMap(([name, value]) => {
      const shown = element('dd', name === 'file' ? shortened(value) : value)
      shown.title = value
      return [element('dt', name), shown]
    }),
  )
}

/** A path's folder and file, enough to tell one best_model.pth from another. */
function shortened(path) {
  return path.split('/').slice(-2).join('/')
}

function listExamples() {
  $('examples').replaceChildren(
    ...about.examples.map((example, number) => {
      const button = element('button')
      button.type = 'button'
      button.setAttribute('aria-pressed', 'false')
      const picture = element(example.thumbnail ? 'img' : 'span')
      if (example.thumbnail) Object.assign(picture, { src: example.thumbnail, alt: '' })
      else picture.className = 'blank'
      button.append(picture, element('span', example.title))
      button.addEventListener('click', () => showExample(number))
      return button
    }),
  )
  $('examples').closest('section').hidden = about.examples.length === 0
}

function listen() {
  for (const key of ['audio', 'rgb']) {
    $(key).addEventListener('change', (event) => takeFiles({ [key]: event.target.files[0] }))
  }
  $('resample').addEventListener('change', () => chosen.audio && showFiles())
  for (const kind of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(kind, (event) => {
      event.preventDefault()
      $('drop').classList.toggle('over', kind === 'dragover')
    })
  }
  document.addEventListener('drop', (event) => {
    const files = [...event.dataTransfer.files]
    const isPicture = (file) => file.type.startsWith('image/') || PICTURES.test(file.name)
    takeFiles({ audio: files.find((file) => !isPicture(file)), rgb: files.find(isPicture) })
  })
  for (const id of ['fold', 'turn', 'tilt', 'paint']) $(id).addEventListener('input', drawView)
  dragToTurn()
  new ResizeObserver(drawView).observe($('cloud'))
}

// ------------------------------------------------------------------------------------------------------------ asking

async function ask(path, body) {
  const options = body && { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }
  let response
  try {
    response = await fetch(path, options)
  } catch {
    throw new Error('the server does not answer; is app.py still running?')
  }
  const answer = await response.json()
  if (!response.ok) throw new Error(answer.error)
  return answer
}

function takeFiles(files) {
  if (!files.audio && !files.rgb) return
  if (chosen.audio && files.audio && !files.rgb) { // another recording is of another place
    chosen.rgb = null
    $('rgb').value = ''
  }
  for (const [key, file] of Object.entries(files)) if (file) chosen[key] = file
  showFiles()
}

function showExample(number) {
  chosen = { audio: null, rgb: null }
  $('audio').value = $('rgb').value = ''
  show({ example: number }, `examples/${number}.wav`, number)
}

async function showFiles() {
  if (!chosen.audio) {
    nameFiles()
    $('status').textContent = 'And now its recording.'
    return
  }
  const body = { resample: $('resample').checked }
  for (const key of ['audio', 'rgb']) {
    if (chosen[key]) body[key] = { name: chosen[key].name, data: await base64Of(chosen[key]) }
  }
  show(body, URL.createObjectURL(chosen.audio))
}

function nameFiles() {
  for (const key of ['audio', 'rgb']) $(`${key}-name`).textContent = chosen[key]?.name ?? 'none'
}

async function show(body, sound, example = null) {
  const request = ++latest
  nameFiles()
  const buttons = [...$('examples').children]
  buttons.forEach((button, number) => button.setAttribute('aria-pressed', String(number === example)))
  document.querySelector('.results').classList.add('busy')
  $('status').hidden = false
  $('status').textContent = 'Listening …'
  try {
    const answer = await ask('look', body)
    if (request !== latest) return
    $('error').hidden = true
    $('status').hidden = true
    $('answer').hidden = false
    if ($('player').src.startsWith('blob:')) URL.revokeObjectURL($('player').src)
    $('player').src = sound
    await draw(answer, example === null ? answer.name : about.examples[example].title)
  } catch (error) {
    if (request !== latest) return
    $('answer').hidden = true
    $('status').hidden = true
    $('error').hidden = false
    $('error').textContent = error.message
  } finally {
    if (request === latest) document.querySelector('.results').classList.remove('busy')
  }
}

// ----------------------------------------------------------------------------------------------------------- drawing

async function draw(answer, name) {
  for (const map of answer.maps) map.values = new Float32Array(bytesOf(map.values).buffer)
  shown = answer
  $('name').textContent = name
  const metres = answer.maps.filter((map) => map.output === 'metres')
  shown.top = Math.max(...metres.map((map) => map.far)) || 1 // of the colours
  drawBar(shown.top, metres.some((map) => map.high > shown.top))
  $('grey').hidden = !metres.some((map) => map.values.some((value) => !(value > 0)))
  $('maps').replaceChildren(...answer.maps.map(mapFigure), ...(answer.picture ? [pictureFigure(answer.picture)] : []))
  forget()
  drawEars(answer.ears)
  shown.pixels = answer.picture ? await pixelsOf(answer.picture) : null
  describeCamera(answer.camera)
  offerMaps(metres)
  unfold()
}

function describeCamera({ across, down, source }) {
  $('camera').textContent =
    `Seen by a camera of ${Math.round(across)}° × ${Math.round(down)}° (${source}). Drag the cloud to turn it; ` +
    'the line is the camera’s axis, in metres. Walls seen from behind are left out.'
}

function colorOf(map, value) {
  if (map.output === 'metres') return value > 0 ? pick(colors.depth, value / shown.top) : HOLE
  return pick(colors.depth, 1 - (value - map.low) / (map.high - map.low || 1)) // near: the colours of near depths
}

function pick(palette, share) {
  const index = 3 * Math.max(0, Math.min(255, Math.floor(share * 256)))
  return palette.subarray(index, index + 3)
}

function paint(canvas, width, height, color) {
  Object.assign(canvas, { width, height })
  const context = canvas.getContext('2d')
  const image = context.createImageData(width, height)
  for (let index = 0; index < width * height; index++) image.data.set([...color(index), 255], 4 * index)
  context.putImageData(image, 0, 0)
}

function mapFigure(map) {
  const unit = map.output === 'metres' ? '' : ': relative disparity'
  const figure = element('figure')
  const canvas = element('canvas')
  canvas.setAttribute('role', 'img')
  canvas.setAttribute('aria-label', `${map.title}, ${rangeOf(map)}`)
  paint(canvas, map.width, map.height, (index) => colorOf(map, map.values[index]))
  const frame = framed(canvas)
  frame.dataset.key = map.key
  frame.addEventListener('pointermove', (event) => pointAt(event, frame))
  frame.addEventListener('pointerdown', (event) => pointAt(event, frame))
  frame.addEventListener('pointerleave', forget)
  const error = map.rmse == null ? '' : `\nRMSE ${map.rmse.toFixed(2)} m`
  figure.append(element('figcaption', map.title + unit), frame, element('p', rangeOf(map) + error, 'note'))
  return figure
}

function rangeOf(map) {
  if (map.output !== 'metres') return 'near is large; no unit, a scale of its own'
  return map.high > 0 ? `${map.low.toFixed(2)} to ${map.high.toFixed(2)} m` : 'nothing was measured'
}

function pictureFigure(source) {
  const picture = element('img')
  Object.assign(picture, { src: source, alt: 'The picture that was given' })
  const figure = element('figure')
  const frame = framed(picture)
  frame.classList.add('picture')
  const note = about.teacher || about.inputs.includes('rgb') ? '' : 'shown alone: no network here sees'
  figure.append(element('figcaption', 'Picture'), frame, element('p', note, 'note'))
  return figure
}

function framed(content) {
  const frame = element('div', '', 'frame')
  const tangent = (angle) => Math.tan((angle / 360) * Math.PI)
  frame.style.aspectRatio = `${tangent(shown.camera.across)} / ${tangent(shown.camera.down)}`
  frame.append(content)
  return frame
}

function drawBar(high, andMore) {
  paint($('scale'), 256, 1, (index) => pick(colors.depth, index / 256))
  const step = [0.5, 1, 2, 5, 10].find((size) => high / size <= 8) ?? 20
  const ticks = []
  for (let value = 0; value < high * (andMore ? 0.76 : 0.93); value += step) ticks.push(value)
  $('ticks').replaceChildren(
    ...[...ticks, high].map((value, place) => {
      const tick = element('span', place === ticks.length ? `${value.toFixed(1)} m${andMore ? ' and more' : ''}` : String(value))
      tick.style.left = `${(100 * value) / high}%`
      return tick
    }),
  )
}

function drawEars(ears) {
  for (const ear of ['left', 'right']) {
    const shades = bytesOf(ears[ear])
    const canvas = $(ear)
    paint(canvas, ears.width, ears.height, (index) => {
      const row = ears.height - 1 - Math.floor(index / ears.width) // low frequencies below
      return pick(colors.echo, shades[row * ears.width + (index % ears.width)] / 255.001)
    })
    const [up, along] = [canvas.previousElementSibling, canvas.nextElementSibling]
    const steps = ears.scale === 'mel' ? ['high', 'low'] : [22, 11, 0].map((value) => `${value}`)
    up.replaceChildren(...steps.map((text) => element('span', text)))
    const times = ears.seconds === null ? ['start', 'end'] : [0, 0.25, 0.5, 0.75, 1].map((share) => (1000 * share * ears.seconds).toFixed(0))
    along.replaceChildren(...times.map((text) => element('span', text)))
  }
  const frequency = ears.scale === 'mel' ? 'mel bands, low to high' : 'kHz'
  $('echo-note').textContent =
    `As the network gets it: ${frequency} upwards, milliseconds to the right. Sound needs 5.9 ms to a wall at 1 m and back.`
}

// ----------------------------------------------------------------------------------------------------- reading a map

function pointAt(event, frame) {
  const box = frame.getBoundingClientRect()
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
  if (x < 0 || x >= 1 || y < 0 || y >= 1) return
  forget()
  const read = []
  for (const place of $('maps').querySelectorAll('.frame')) {
    const mark = element('span', '', 'mark')
    Object.assign(mark.style, { left: `${100 * x}%`, top: `${100 * y}%` })
    place.append(mark)
    const map = shown.maps.find(({ key }) => key === place.dataset.key)
    if (!map) continue
    const value = map.values[Math.floor(y * map.height) * map.width + Math.floor(x * map.width)]
    const text = map.output !== 'metres' ? value.toPrecision(3) : value > 0 ? `${value.toFixed(2)} m` : 'not measured'
    place.append(element('span', text, 'metres'))
    read.push(`${map.key === 'student' ? 'ear' : map.key} ${text}`)
  }
  $('readout').textContent = read.join(' · ')
}

function forget() {
  document.querySelectorAll('.mark, .metres').forEach((mark) => mark.remove())
  $('readout').textContent = 'Point at a map to read its metres.'
}

// ------------------------------------------------------------------------------------------------------- point cloud

function offerMaps(maps) {
  if (!maps.some((map) => map.key === cloud.of)) cloud.of = 'student'
  const names = { student: 'ear', teacher: 'teacher', measured: 'measured' }
  $('choice').replaceChildren(
    ...maps.map((map) => {
      const button = element('button', names[map.key])
      button.type = 'button'
      button.addEventListener('click', () => chooseMap(map.key))
      button.dataset.key = map.key
      return button
    }),
  )
  $('choice').hidden = maps.length < 2
  $('paint-label').hidden = !shown.pixels
  chooseMap(cloud.of)
}

function chooseMap(key) {
  const map = shown.maps.find((one) => one.key === key)
  cloud = { of: key, map, points: unproject(map, shown.camera) }
  for (const button of $('choice').children) button.setAttribute('aria-pressed', String(button.dataset.key === key))
  drawView()
}

/** Unfold the first map slowly, so that one sees what the slider does. */
function unfold() {
  if (Number($('fold').value) > 0) return
  if (matchMedia('(prefers-reduced-motion: reduce)').matches) {
    $('fold').value = 100
    drawView()
    return
  }
  const began = performance.now()
  const step = (now) => {
    const share = Math.min(1, Math.max(0, (now - began - 300) / 900))
    $('fold').value = 100 * share * share * (3 - 2 * share)
    drawView()
    if (share < 1) requestAnimationFrame(step)
  }
  requestAnimationFrame(step)
}

let drawing = 0

function drawView() {
  cancelAnimationFrame(drawing)
  drawing = requestAnimationFrame(() => {
    const view = { fold: $('fold').value / 100, turn: Number($('turn').value), tilt: Number($('tilt').value) }
    $('turn-value').textContent = `${view.turn}°`
    $('tilt-value').textContent = `${view.tilt}°`
    const canvas = $('cloud')
    if (!cloud.points || !canvas.clientWidth) return
    const density = Math.min(2, devicePixelRatio)
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * density))
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height })
    const { map } = cloud
    const painted = $('paint').checked && shown.pixels
    const color = painted
      ? (index) => pixelAt(painted, ((index % map.width) + 0.5) / map.width, (Math.floor(index / map.width) + 0.5) / map.height)
      : (index) => colorOf(map, map.values[index])
    drawCloud(canvas, cloud.points, color, view)
  })
}

function dragToTurn() {
  const canvas = $('cloud')
  let from = null
  canvas.addEventListener('pointerdown', (event) => {
    from = { x: event.clientX, y: event.clientY, turn: Number($('turn').value), tilt: Number($('tilt').value) }
    canvas.setPointerCapture(event.pointerId)
  })
  canvas.addEventListener('pointermove', (event) => {
    if (!from) return
    $('turn').value = from.turn - (event.clientX - from.x) / 4
    $('tilt').value = from.tilt + (event.clientY - from.y) / 4
    drawView()
  })
  for (const kind of ['pointerup', 'pointercancel']) canvas.addEventListener(kind, () => (from = null))
}

// ------------------------------------------------------------------------------------------------------------- small

function element(name, text = '', kind = '') {
  const made = document.createElement(name)
  if (text) made.textContent = text
  if (kind) made.className = kind
  return made
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))
}

function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader()
    reader.addEventListener('load', () => resolve(reader.result.slice(reader.result.indexOf(',') + 1)))
    reader.addEventListener('error', () => reject(reader.error))
    reader.readAsDataURL(file)
  })
}

async function pixelsOf(source) {
  const picture = new Image()
  picture.src = source
  await picture.decode()
  const canvas = element('canvas')
  Object.assign(canvas, { width: picture.naturalWidth, height: picture.naturalHeight })
  const context = canvas.getContext('2d')
  context.drawImage(picture, 0, 0)
  return context.getImageData(0, 0, canvas.width, canvas.height)
}

function pixelAt(pixels, x, y) {
  const place = 4 * (Math.floor(y * pixels.height) * pixels.width + Math.floor(x * pixels.width))
  return pixels.data.subarray(place, place + 3)
}

start().catch((error) => {
  $('status').hidden = true
  $('error').hidden = false
  $('error').textContent = error.message
})
