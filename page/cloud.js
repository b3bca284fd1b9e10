// A depth map as points in space, drawn on a 2D canvas: no library, one depth buffer.

const NEAR = 0.05 // of the pivot's distance: nearer points are behind the glass
const LARGEST = 40 // pixels of a point at most
const STRETCH = 4 // times a pixel's width: the patch of a slanted surface at most
const FILL = 0.92 // of the canvas

/**
 * Where the pixels of a depth map are, for a level pinhole camera at the origin that looks along z; y points down.
 *
 * @param {{width: number, height: number, values: Float32Array}} map z-depth in metres; what is not positive is a hole
 * @param {{across: number, down: number}} camera its field of view in degrees
 * @returns points: of each pixel that is no hole the tangents x and y of its ray, its depth, the side of its surface
 *     that the camera sees (a normal, or null at the rim of a hole) and its index; pivot: the median depth, about which
 *     the view turns; farthest: the depth that 2 in 100 exceed; cell: a pixel's width and height, as tangents
 */
export function unproject(map, camera) {
  const across = Math.tan((camera.across / 360) * Math.PI)
  const down = Math.tan((camera.down / 360) * Math.PI)
  const ray = (row, column) => [(((column + 0.5) / map.width) * 2 - 1) * across, (((row + 0.5) / map.height) * 2 - 1) * down]
  const place = (row, column) => {
    const r = Math.max(0, Math.min(map.height - 1, row))
    const c = Math.max(0, Math.min(map.width - 1, column))
    const depth = map.values[r * map.width + c]
    const [x, y] = ray(r, c)
    return depth > 0 ? [x * depth, y * depth, depth] : null
  }
  const cell = [(2 * across) / map.width, (2 * down) / map.height]
  const points = []
  for (let row = 0; row < map.height; row++) {
    for (let column = 0; column < map.width; column++) {
      const index = row * map.width + column
      const depth = map.values[index]
      if (!(depth > 0)) continue
      const [x, y] = ray(row, column)
      const sides = [place(row, column - 1), place(row, column + 1), place(row - 1, column), place(row + 1, column)]
      const normal = sides.includes(null) ? null : normalOf(...sides)
      const reach = [reachOf(sides[0], sides[1], cell[0] * depth), reachOf(sides[2], sides[3], cell[1] * depth)]
      points.push({ x, y, depth, normal, reach, index })
    }
  }
  const depths = points.map((point) => point.depth).sort((a, b) => a - b)
  const ranked = (share) => depths[Math.floor(share * (depths.length - 1))] ?? 1
  return { points, pivot: ranked(0.5), farthest: ranked(0.98), across, down, cell }
}

/** Half the way between two neighbours: of a slanted surface more than a pixel's width, but no bridge over an edge. */
function reachOf(one, other, width) {
  if (one === null || other === null) return width
  return Math.min(STRETCH * width, Math.hypot(...one.map((value, axis) => value - other[axis])) / 2)
}

/** The normal of the surface between four neighbours; a camera at the origin sees the side that it points to. */
function normalOf(left, right, above, below) {
  const [ax, ay, az] = right.map((value, axis) => value - left[axis])
  const [bx, by, bz] = below.map((value, axis) => value - above[axis])
  return [az * by - ay * bz, ax * bz - az * bx, ay * bx - ax * by]
}

/**
 * Draw a cloud.
 *
 * At fold 0 all points lie on a plane before the camera: the flat map. At fold 1 each is where it is in the room. Walls
 * that are seen from behind are left out, as in a doll's house.
 *
 * @param {HTMLCanvasElement} canvas
 * @param cloud what `unproject` returned
 * @param {(index: number) => number[]} color red, green and blue of a pixel of the map
 * @param {{fold: number, turn: number, tilt: number}} view fold in [0, 1]; degrees
 */
export function drawCloud(canvas, cloud, color, view) {
  const { width, height } = canvas
  const context = canvas.getContext('2d')
  const image = context.createImageData(width, height)
  const pixels = new DataView(image.data.buffer)
  const buffer = new Float32Array(width * height).fill(Infinity)
  if (!cloud.points.length) return context.clearRect(0, 0, width, height)
  const project = projection(cloud, view, width, height)
  for (const point of cloud.points) {
    const z = cloud.pivot + view.fold * (point.depth - cloud.pivot)
    const seen = project(point.x * z, point.y * z, z)
    if (seen === null || isBackside(point, project.eye, z, view.fold)) continue
    const [red, green, blue] = color(point.index)
    const rgba = ((red << 24) | (green << 16) | (blue << 8) | 255) >>> 0
    const [across, down] = point.reach.map((reach, side) => {
      const size = Math.max(cloud.cell[side] * z, view.fold * reach)
      return Math.min(LARGEST, Math.ceil(size * seen.scale) + 1)
    })
    const left = Math.round(seen.x - across / 2)
    const top = Math.round(seen.y - down / 2)
    for (let y = Math.max(0, top); y < Math.min(height, top + down); y++) {
      for (let x = Math.max(0, left); x < Math.min(width, left + across); x++) {
        const place = y * width + x
        if (seen.z >= buffer[place]) continue
        buffer[place] = seen.z
        pixels.setUint32(4 * place, rgba)
      }
    }
  }
  context.putImageData(image, 0, 0)
  if (view.fold > 0) drawAxis(context, cloud, project, view.fold)
}

/** The view: it turns about the pivot, steps back as the cloud unfolds, and fits the canvas. Gives pixels, or null. */
function projection(cloud, view, width, height) {
  const turn = (view.fold * view.turn * Math.PI) / 180
  const tilt = (-view.fold * view.tilt * Math.PI) / 180 // y points down
  const distance = cloud.pivot * (1 + 0.8 * view.fold)
  const [cosTurn, sinTurn, cosTilt, sinTilt] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)]
  const look = (x, y, z) => {
    z -= cloud.pivot
    const along = cosTurn * z - sinTurn * x
    const away = cosTilt * along - sinTilt * y + distance
    return away < NEAR * cloud.pivot ? null : [(cosTurn * x + sinTurn * z) / away, (cosTilt * y + sinTilt * along) / away, away]
  }
  const box = [Infinity, -Infinity, Infinity, -Infinity] // left, right, top, bottom of what is seen
  const widen = (x, y, share) => {
    box[0] = Math.min(box[0], share * x)
    box[1] = Math.max(box[1], share * x)
    box[2] = Math.min(box[2], share * y)
    box[3] = Math.max(box[3], share * y)
  }
  for (const point of cloud.points) {
    const z = cloud.pivot + view.fold * (point.depth - cloud.pivot)
    const seen = look(point.x * z, point.y * z, z)
    if (seen) widen(seen[0], seen[1], 1)
  }
  const eye = look(0, 0, 0)
  if (eye) widen(eye[0], eye[1], view.fold)
  const focal = FILL * Math.min(width / (box[1] - box[0]), height / (box[3] - box[2]))
  const [middle, level] = [(box[0] + box[1]) / 2, (box[2] + box[3]) / 2]
  const project = (x, y, z) => {
    const seen = look(x, y, z)
    if (seen === null) return null
    const scale = focal / seen[2]
    return { x: width / 2 + (seen[0] - middle) * focal, y: height / 2 + (seen[1] - level) * focal, z: seen[2], scale }
  }
  project.eye = [distance * cosTilt * sinTurn, distance * sinTilt, cloud.pivot - distance * cosTilt * cosTurn]
  return project
}

/** Whether the eye is behind the surface of a point that the camera saw from the front. */
function isBackside(point, eye, z, fold) {
  if (point.normal === null || fold < 0.5) return false // the flat map has no behind
  const [x, y, depth] = point.normal
  return x * (eye[0] - point.x * z) + y * (eye[1] - point.y * z) + depth * (eye[2] - z) < 0
}

/** The camera with the rim of its view, and metres along its axis. */
function drawAxis(context, cloud, project, fold) {
  const farthest = Math.floor(cloud.farthest)
  const pixel = context.canvas.width / Math.max(1, context.canvas.clientWidth)
  context.save()
  context.globalAlpha = 0.9 * fold
  context.strokeStyle = context.fillStyle = '#fff'
  context.lineWidth = pixel
  context.font = `${11 * pixel}px system-ui, sans-serif`
  const line = (...ends) => {
    const seen = ends.map((end) => project(...end))
    if (seen.includes(null)) return
    context.beginPath()
    seen.forEach(({ x, y }) => context.lineTo(x, y))
    context.stroke()
  }
  const rim = 0.35
  const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([x, y]) => [x * rim * cloud.across, y * rim * cloud.down, rim])
  corners.forEach((corner, number) => {
    line([0, 0, 0], corner)
    line(corner, corners[(number + 1) % 4])
  })
  line([0, 0, 0], [0, 0, farthest])
  for (let metre = 1; metre <= farthest; metre++) {
    const seen = project(0, 0, metre)
    if (seen === null) continue
    context.beginPath()
    context.arc(seen.x, seen.y, 2 * pixel, 0, 7)
    context.fill()
    if (farthest <= 8 || metre % Math.ceil(farthest / 8) === 0) context.fillText(`${metre} m`, seen.x + 5 * pixel, seen.y - 4 * pixel)
  }
  context.restore()
}
